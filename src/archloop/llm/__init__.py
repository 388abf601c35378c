"""The LLM: models and adapters, spending, generation and fine-tuning."""
