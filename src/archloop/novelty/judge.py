"""What a candidate is compared with: corpus (J_train) and own cycle (J_gen), paper section 3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archloop.novelty.index import NoveltyIndex, Sketch
from archloop.types import NoveltyScores

if TYPE_CHECKING:
    from archloop.config import NoveltyConfig


class NoveltyJudge:
    """Scores candidates against the corpus and against what this cycle accepted.

    An accepted network counts in J_gen for the rest of its cycle, and in J_train from the next
    cycle on, when it is in the corpus. (The paper's log shows J_train 0.0 beside J_gen 0.8047,
    which rules out a J_train that already holds the cycle's own.) Candidates must come in a fixed
    order.
    """

    def __init__(self, config: NoveltyConfig) -> None:
        self._train = NoveltyIndex(config)
        self._gen = NoveltyIndex(config)
        self._accepted: list[tuple[str, Sketch]] = []
        self._config = config

    def add_known(self, id: str, code: str) -> None:
        """Put a network of the corpus into J_train: a seed, or one accepted in an earlier cycle.

        Raises:
            CodeTokenError: The code is not a sequence of Python tokens.
            ValueError: The id already names a different network.
        """
        self._train.add(id, code)

    def start_cycle(self) -> None:
        """Move what the last cycle accepted into J_train, and empty J_gen."""
        for id, sketch in self._accepted:
            self._train.add(id, sketch)
        self._accepted = []
        self._gen = NoveltyIndex(self._config)

    def judge(self, id: str, code: str) -> NoveltyScores:
        """Score a candidate; a network of the same id is never compared with itself.

        Raises:
            CodeTokenError: The code is not a sequence of Python tokens.
        """
        sketch = self._train.sketch(code)
        train, nearest_train = self._train.query(sketch, exclude=id)
        gen, nearest_gen = self._gen.query(sketch, exclude=id)
        return NoveltyScores(
            nn_jaccard_train=train,
            near_dup_text_train=self._train.is_near_duplicate(train),
            nn_jaccard_gen=gen,
            near_dup_text_gen=self._gen.is_near_duplicate(gen),
            nearest=nearest_gen if gen > train or nearest_train is None else nearest_train,
        )

    def accept(self, id: str, code: str) -> None:
        """Record that a candidate of the current cycle was accepted.

        Raises:
            CodeTokenError: The code is not a sequence of Python tokens.
            ValueError: The id already names a different network of this cycle.
        """
        sketch = self._gen.sketch(code)
        self._gen.add(id, sketch)
        self._accepted.append((id, sketch))
