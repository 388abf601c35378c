"""A network as text: extracted and rendered, checked by a static policy, cleaned, explained."""
