"""A Hugging Face model in this process as what answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.errors import InputError
from circuitcli.explaining.asking import Answer, Ask, Keep
from circuitcli.models.chat import Conversation, Message
from circuitcli.models.loading import LanguageModel
from circuitcli.models.window import window
from circuitcli.reading import whole_characters

# Questions of a choice that are run at once.
_BATCH = 8
_ASSUMED_WINDOW = 2048
# Tokens of one line.
_LINE = 60
# Stands behind each token of a simulation, so that no guess depends on one before it (Bills et al. 2023).
_UNKNOWN = "?\n"


@dataclass(frozen=True)
class LocalModel:
    """A language model and its tokenizer; ``digest`` tells its weights apart from others of the same name."""

    model: LanguageModel
    digest: str
    judges_singly: bool = True

    @property
    def name(self) -> str:
        """The model's name and what tells its weights."""
        return f"{self.model.name} {self.digest}"

    @torch.no_grad()
    def answer(self, asks: Sequence[Ask], keep: Keep) -> None:
        """As `Client.answer`; answers to choices come in batches."""
        choices = [number for number, ask in enumerate(asks) if ask.kind == "choice"]
        # Of equal lengths, batches need no padding to speak of.
        choices.sort(key=lambda number: asks[number].n_bytes)
        for start in range(0, len(choices), _BATCH):
            part = choices[start : start + _BATCH]
            for number, answer in zip(part, self._choices([asks[number] for number in part]), strict=True):
                keep(number, answer)
        for number, ask in enumerate(asks):
            if ask.kind != "choice":
                keep(number, self._text(ask) if ask.kind == "text" else self._digits(ask))

    def _choices(self, asks: Sequence[Ask]) -> Iterator[Answer]:
        prompts = [self._prompt(ask) for ask in asks]
        longest = max(map(len, prompts))
        pad = self.model.tokenizer.pad_id
        # On the right: what comes behind a token does not change what is before it.
        ids = torch.tensor([prompt + [pad] * (longest - len(prompt)) for prompt in prompts])
        mask = torch.tensor([[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts])
        last = torch.tensor([len(prompt) - 1 for prompt in prompts])
        shares = self._next(ids, mask, last)
        for ask, prompt, share in zip(asks, prompts, shares, strict=True):
            numbers = tuple(float(share[self._first_ids(option)].sum()) for option in ask.options)
            yield Answer(numbers=numbers, tokens_in=len(prompt), tokens_out=1)

    def _next(
        self, ids: Int[Tensor, "ask position"], mask: Int[Tensor, "ask position"], last: Int[Tensor, " ask"]
    ) -> Float[Tensor, "ask vocab"]:
        device = self.model.adapter.device
        logits = self.model.adapter.model(ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        return logits[torch.arange(len(ids)), last.to(device)].float().softmax(dim=-1).cpu()

    def _text(self, ask: Ask) -> Answer:
        hf, tokenizer = self.model.adapter.model, self.model.tokenizer
        prompt = self._prompt(ask) + tokenizer.encode(ask.begins)
        ids = torch.tensor([prompt], device=self.model.adapter.device)
        options: dict[str, Any] = {
            "do_sample": ask.temperature > 0,
            "temperature": ask.temperature or None,
            "top_p": None,
            "top_k": None,
        }
        if ask.begins:
            options |= {"stop_strings": ["\n"], "tokenizer": tokenizer.hf}
        made = hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=min(ask.max_tokens, _LINE if ask.begins else ask.max_tokens, self._window - len(prompt)),
            pad_token_id=tokenizer.pad_id,
            **options,
        )
        new = made[0, len(prompt) :].tolist()
        kept = [token for token in new if token not in tokenizer.special_ids]
        return Answer(whole_characters(ask.begins + tokenizer.decode(kept)), None, len(prompt), len(new))

    def _digits(self, ask: Ask) -> Answer:
        """The expected digit behind each token, all in one run."""
        tokenizer = self.model.tokenizer
        ids, places = self._prompt(ask, room=12 * len(ask.tokens)), []
        for token in ask.tokens:
            ids += tokenizer.encode(f"{token!r}\t")
            places.append(len(ids) - 1)
            ids += tokenizer.encode(_UNKNOWN)
        if len(ids) > self._window:
            return Answer(problem=f"{len(ids)} tokens are more than the model takes", tokens_in=len(ids))
        whole = torch.tensor([ids] * 1)
        device = self.model.adapter.device
        logits = self.model.adapter.model(whole.to(device), use_cache=False).logits[0, places].float()
        of_digits = torch.stack([logits[:, self._first_ids(str(digit))].logsumexp(-1) for digit in range(10)], dim=-1)
        expected = of_digits.softmax(-1).cpu() @ torch.arange(10.0)
        return Answer(numbers=tuple(expected.tolist()), tokens_in=len(ids), tokens_out=len(places))

    def _prompt(self, ask: Ask, *, room: int = 0) -> list[int]:
        """Ids up to where the model answers; of what is too long for it the middle is left out."""
        tokenizer = self.model.tokenizer
        ids = tokenizer.with_bos(tokenizer.encode(self._written(ask)))
        most = max(16, self._window - min(ask.max_tokens, self._window // 4) - len(ask.begins) - room)
        return ids if len(ids) <= most else ids[: most // 2] + ids[len(ids) - (most - most // 2) :]

    def _written(self, ask: Ask) -> str:
        """A question as the chat template writes it, or plainly for a model that has none."""
        whole, tokenizer = f"{ask.system}\n\n{ask.user}", self.model.tokenizer
        if not getattr(tokenizer.hf, "chat_template", None):
            return f"{whole}\n\nAnswer:"
        try:
            return tokenizer.render(
                Conversation((Message("system", ask.system), Message("user", ask.user))), answers=True
            )
        except InputError:
            # Some templates know no system.
            return tokenizer.render(Conversation.of_user(whole), answers=True)

    @property
    def _window(self) -> int:
        return window(self.model.adapter.model.config) or _ASSUMED_WINDOW

    def _first_ids(self, word: str) -> list[int]:
        """The ids with which a word may begin, with a space before it or not."""
        found = (self.model.tokenizer.encode(written) for written in (word, f" {word}"))
        # Some tokenizers write a lone space first.
        return sorted(
            {next((one for one in ids if self.model.tokenizer.decode([one]).strip()), ids[0]) for ids in found}
        )
