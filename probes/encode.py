"""Texts of lm-eval's requests to tokens, by lm-eval's own rules: what its HFLM would feed to the model.

Imports lm-eval (lazily: that takes seconds). Which texts are asked for is for `probes.capture`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from pretrain.errors import ProbeError
from probes.capture import Encoded, Encoder
from probes.request import ProbeTokenizer

_MAX_GEN_TOKS = 256
"""HFLM's default."""


def generation_limits(kwargs: dict[str, Any], *, name: str) -> tuple[list[str], int]:
    """Where HFLM would end an answer, and after how many tokens at the latest.

    Args:
        kwargs: the task's `generation_kwargs`.
        name: of the task.

    Raises:
        ProbeError: answers would be drawn at random.
    """
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    given: dict[str, Any] = dict(normalize_gen_kwargs(kwargs, _MAX_GEN_TOKS))
    if given.get("do_sample") or given.get("temperature") or given.get("num_beams", 1) != 1:
        raise ProbeError(
            f"Task {name} draws its answers at random (generation_kwargs do_sample={given.get('do_sample')}, "
            f"temperature={given.get('temperature')}, num_beams={given.get('num_beams', 1)}), but only the likeliest "
            f"token is taken here. Set generate: false in the suite, or do_sample: false in the task."
        )
    return handle_stop_sequences(given.get("until"), eos=None), int(given["max_gen_toks"])


def build_encoder(tokenizer: ProbeTokenizer, *, add_bos: bool) -> Encoder:
    """Encodes as lm-eval's HFLM does: a model for lm-eval (its rules are inherited) that records, and answers nothing.

    Args:
        tokenizer: the run's; control tokens spelt out in a text (`<s>`) are text here.
        add_bos: `<s>` before every prompt, HFLM's `add_bos_token`.

    Raises:
        ProbeError: the tokenizer has neither `<s>` nor `</s>`.
    """
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    if max(tokenizer.bos_id, tokenizer.eos_id) < 0:
        raise ProbeError("The tokenizer has neither <s> nor </s>: prompts without context need one of them.")

    class Recorder(TemplateLM):
        backend = "causal"
        eot_token_id = tokenizer.eos_id
        # HFLM.prefix_token_id: the context of a request that has none.
        prefix_token_id = tokenizer.bos_id if tokenizer.bos_id >= 0 else tokenizer.eos_id

        def __init__(self) -> None:
            super().__init__()
            self._recorded: list[Encoded] = []
            # As in training, and as the tokenizer.json of an export does: SentencePiece's own ids.
            self._encode = functools.lru_cache(maxsize=65536)(lambda text: tuple(tokenizer.encode(text)))

        def pair(self, context: str, continuation: str) -> Encoded:
            if not context and not self._encode(continuation):
                return [self.prefix_token_id], []  # lm-eval would fail on `[][0]`
            self.loglikelihood([SimpleNamespace(args=(context, continuation))], disable_tqdm=True)
            return self._recorded.pop()

        def windows(self, text: str, *, max_length: int) -> list[Encoded]:
            found: Iterable[Encoded] = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=max_length,
                context_len=1,
            )
            return [make_disjoint_window(pair) for pair in found]

        def whole(self, text: str) -> list[int]:
            return self.tok_encode(text)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            with_bos = add_bos if add_special_tokens is None else add_special_tokens
            return ([tokenizer.bos_id] if with_bos and tokenizer.bos_id >= 0 else []) + list(self._encode(string))

        def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
            self._recorded.extend((context, continuation) for _, context, continuation in requests)
            return [(0.0, False)] * len(requests)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise NotImplementedError("nothing is answered here, see `windows`")

        generate_until = loglikelihood_rolling

    return Recorder()
