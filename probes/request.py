"""What lies between lm-eval and the plan: tokenised requests and the facts of their tasks.

Plain data without lm-eval, so that packing, metrics and their tests need no task library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from probes.items import StoredSuite


class ProbeTokenizer(Protocol):
    """What the prober needs of `pretrain.data.tokenizer.Tokenizer`."""

    @property
    def bos_id(self) -> int:
        """Id of `<s>`, negative if there is none."""
        ...

    @property
    def eos_id(self) -> int:
        """Id of `</s>`."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of the model."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        ...

    @property
    def unk_id(self) -> int:
        """Id of `<unk>`."""
        ...

    def is_control(self, token: int) -> bool:
        """Whether an id stands for no text."""
        ...

    def piece(self, token: int) -> str:
        """The piece of one id, blanks shown as U+2581."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """One continuation to be scored after one context.

    Attributes:
        task: index of the task in `SuiteRequests.tasks`.
        item: number of the item in its task (lm-eval's doc_id).
        choice: number of the request within its item (lm-eval's idx).
        context: token ids before the continuation, at least one.
        continuation: token ids whose log-probability is wanted, at least one.
        num_chars: characters of the continuation's text without leading white space, at least 1 for a choice. A
            text cut into windows has its whole length at its first window, 0 at the others.
        num_bytes: the same in UTF-8 bytes.
        is_choice: one of the item's answers; False for lm-eval's extra requests (unconditional answers), for
            windows of a text, and for `is_whole`.
        is_gold: a right answer; an item may have several.
        is_whole: the prompt and the answer `choice` from their second token on, for OpenCompass's PPL mode; not
            one of lm-eval's requests. All others with the same task, item and choice answer one of them together.
    """

    task: int
    item: int
    choice: int
    context: tuple[int, ...]
    continuation: tuple[int, ...]
    num_chars: int
    num_bytes: int
    is_choice: bool
    is_gold: bool
    is_whole: bool = False


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What measurements say of a task.

    Attributes:
        name: lm-eval name.
        domain: domain in the suite.
        num_fewshot: examples in the prompt.
        num_items: items scored.
        output_type: lm-eval's: `multiple_choice`, `loglikelihood`, `loglikelihood_rolling`, or `generate_until`,
            whose gold answers are scored in place of generated ones.
        not_computed: lm-eval's metrics that would need generated text, by name and with commas; often none.
        num_without_gold: items whose right answer is not among their choices: wrong for lm-eval, and without
            continuous metrics.
        num_without_reference: items whose answer the model writes, but whose reference answer cannot be scored:
            without continuous metrics.
        num_left_out: items that cannot be scored at all, beside those of `num_items`.
        num_cut: items with a prompt that loses its beginning, because with its answer it exceeds the context.
        num_cut_to_generate: prompts that lose their beginning so that the context has room for the answer.
        line: the suite's line that it came with, see `probes.suite.Suite.lines`: the task itself, or a group or tag.
    """

    name: str
    domain: str
    num_fewshot: int
    num_items: int
    output_type: str = "multiple_choice"
    not_computed: str = ""
    num_without_gold: int = 0
    num_without_reference: int = 0
    num_left_out: int = 0
    num_cut: int = 0
    num_cut_to_generate: int = 0
    line: str = ""


@dataclass(frozen=True, slots=True)
class SuiteRequests:
    """Everything a suite asks of a model.

    Attributes:
        suite: name of the suite.
        tasks: tasks in the suite's order (groups expanded).
        requests: ordered by task, item, choice; requests of one item are neighbours.
        skipped: a sentence for each item, or reference answer alone, that is left out, with task, item and reason.
        content_digest: hash of task definitions, items and prompt texts.
        stored: what metrics need of the items.
    """

    suite: str
    tasks: Sequence[TaskFacts]
    requests: Sequence[Request]
    skipped: Sequence[str]
    content_digest: str
    stored: StoredSuite


def text_lengths(text: str) -> tuple[int, int]:
    """Characters and UTF-8 bytes of a continuation for per-char, per-byte and bits-per-byte figures.

    Leading white space is the delimiter between prompt and answer and does not count (OLMo's in-loop
    evaluation leaves out the leading blank too); text of nothing but white space counts in full.
    """
    counted = text.lstrip() or text
    return max(1, len(counted)), max(1, len(counted.encode("utf-8", errors="surrogatepass")))
