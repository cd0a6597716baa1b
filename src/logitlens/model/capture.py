"""Run a model and keep its residual stream; nothing stays on the model.

Depth 0 is what the first block receives, depth d what block d − 1 returned: the raw stream, before
any final norm. Prompts run as one right-padded batch (see `batches`), whose padding is cut off again.
Long prompts may run in chunks, see `chunks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from logitlens.anatomy.blocks import Anatomy
from logitlens.anatomy.check import distance, sums
from logitlens.anatomy.forward import accepts, as_found, forward, input_device, logits_of, refusing
from logitlens.anatomy.probe import probe_ids
from logitlens.anatomy.readable import Readable
from logitlens.anatomy.sublayers import STREAMS, Key, Took, contributions, keeper
from logitlens.anatomy.watch import Hook, hooked
from logitlens.errors import LogitLensError, PromptError, UnsupportedModel
from logitlens.model.batches import padded
from logitlens.model.chat import Messages
from logitlens.readout.transfer import sent
from logitlens.select import layer_label

if TYPE_CHECKING:
    from logitlens.model.edits import Changes, Prepared

ROUNDING = 2.0  # of `distance`, times √blocks; beyond it prompts are merely run alone

Progress = Callable[[str, int, int], None]  # what is counted, how many are done, of how many in all

# Hooks that gather (B, T, D) tensors by key, and the keys each must gather once.
Part = tuple[AbstractContextManager[dict[Key, list[Tensor]]], Sequence[Key]]


@dataclass(eq=False)
class Residuals:
    """One prompt's residual stream.

    ids              (T,) int64, on the CPU
    h                one (T, D) tensor for each of the `layers`, in the stream's own dtype; of a batch, parts
                     of one tensor, which stays while any prompt's does
    layers           their labels: "embed", "0", …, "N-1"
    final_logits     (P, V) float32: the model's own logits at `final_positions`, as `h` of a batch
    stream           "resid"; or "mid", "attn", "mlp", "head" (see `sublayers`, `heads`): rows of block
                     d − 1 for depth d, labelled "0.attn", "0.head3", …; the last row is still the final
                     residual, the base of every comparison
    edits            what was changed while the model ran; None: nothing
    """

    ids: Tensor
    h: list[Tensor]
    layers: list[str]
    final_logits: Tensor
    final_positions: list[int]
    stream: str = "resid"
    prompt: str | Messages | None = None
    position_offset: int = 0
    edits: Prepared | None = None

    @cached_property
    def final_sums(self) -> Tensor:
        """(P,) float64: the log of the sum of exp of each row of `final_logits`."""
        return sums(self.final_logits)


@dataclass(eq=False)
class Cache:
    """What the model keeps of the positions read so far, and the argument that passes it back."""

    argument: str
    kept: Any = None

    def given(self) -> dict[str, Any]:
        """The arguments of the next pass."""
        return {"use_cache": True, self.argument: self.kept}


def capture(
    model: Readable,
    prompts: Sequence[Sequence[int]],
    *,
    depths: Sequence[int] | None = None,
    stream: str = "resid",
    check: Sequence[int] | str | None = None,
    progress: Progress | None = None,
    cache: Cache | None = None,
    edits: Prepared | None = None,
    watch: Took | None = None,
) -> list[Residuals]:
    """Token ids of several prompts → their residuals, from one forward pass.

    depths     which of 0 … N to keep; None: all
    stream     "resid", "mid", "attn", "mlp" or "head"; of a sublayer, depth d belongs to block d − 1
    check      the position of each prompt at which the model's own logits are kept for the check;
               None: the last one; "all": every position
    progress   called with ("blocks", done, N) as blocks return; what it raises ends the pass
    cache      of one prompt: the positions before these ids; these are added to it
    edits      what is changed in the stream while the model runs; see `edits.prepare`
    watch      called after every block with what was added to its stream; see `contributions`

    Raises PromptError for an empty prompt, UnsupportedModel where the model's forward fails, its
    blocks do not run once each, or its stream has another shape than when it was loaded.
    """
    hf, found = model.hf, model.anatomy
    wanted = list(range(len(found.blocks) + 1)) if depths is None else sorted(set(depths))
    ids = _tokens(prompts)
    batch = padded(ids, input_device(hf))
    where = _compared(ids, check)
    asked = sorted({p for positions in where for p in positions})
    extra = dict(batch.extra) | (cache.given() if cache is not None else {})
    if keeps := not isinstance(check, str) and "logits_to_keep" in accepts(hf):
        kept = torch.tensor(asked, dtype=torch.long, device="cpu")
        extra["logits_to_keep"] = sent(kept, batch.ids_BT.device)
    changes = edits.over([len(i) for i in ids]) if edits is not None else None
    parts, labels = parts_of(model, found, stream, wanted, len(ids), changes, watch)
    with _own_rows(hf, where if keeps else [], asked) as narrowed:
        output, h_LBTD = _run(hf, found, batch.ids_BT, parts, extra, progress)
    if cache is not None:
        cache.kept = getattr(output, cache.argument, None)
    logits = logits_of(hf, output).detach()
    kept = asked if keeps and logits.shape[1] == len(asked) else range(logits.shape[1])
    if narrowed and logits.shape[1] == 1:
        logits, kept = logits.expand(-1, len(asked), -1), asked
    if not all(set(positions) <= set(kept) for positions in where):
        raise UnsupportedModel(
            f"{type(hf).__name__} gave logits of shape {tuple(logits.shape)} for "
            f"{batch.ids_BT.shape[1]} tokens: expected one row a position"
        )
    place = {p: i for i, p in enumerate(kept)}
    rows = [(b, place[p]) for b, positions in enumerate(where) for p in positions]
    rows_2P = sent(torch.tensor(rows, dtype=torch.long, device="cpu").T, logits.device)
    final_logits = logits[rows_2P[0], rows_2P[1]].float().split([len(p) for p in where])
    return [
        Residuals(
            ids=ids_T,
            h=[h_BTD[b, : len(ids_T)] for h_BTD in h_LBTD],
            layers=labels,
            final_logits=final_logits[b],
            final_positions=list(where[b]),
            stream=stream,
            edits=edits,
        )
        for b, ids_T in enumerate(ids)
    ]


@contextmanager
def _own_rows(
    hf: nn.Module, where: Sequence[Sequence[int]], asked: Sequence[int]
) -> Iterator[list[bool]]:
    """Inside, the model's head is given one row (B, 1, D) where each prompt is compared at one position.

    `logits_to_keep` leaves (B, A, D) of them: of each prompt those at all the positions asked for.
    Gives a list, which is not empty once the head was given fewer.
    """
    narrowed: list[bool] = []
    head = getattr(hf, "get_output_embeddings", lambda: None)()
    if len(asked) == 1 or not isinstance(head, nn.Module) or any(len(p) != 1 for p in where):
        yield narrowed
        return

    def narrow(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if not args or args[0].shape[:-1] != (len(where), len(asked)):
            return None
        rows = torch.tensor([asked.index(p) for (p,) in where], dtype=torch.long, device="cpu")
        prompts = torch.arange(len(where), dtype=torch.long, device=args[0].device)
        narrowed.append(True)
        return (args[0][prompts, sent(rows, args[0].device)][:, None], *args[1:]), kwargs

    with hooked(before=[(head, narrow)], first=True):
        yield narrowed


def _tokens(prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    ids = [torch.as_tensor(p, dtype=torch.long).cpu().flatten() for p in prompts]
    if not ids or any(len(i) == 0 for i in ids):
        raise PromptError("a prompt has no tokens: give at least one token id")
    return ids


def _compared(ids: Sequence[Tensor], check: Sequence[int] | str | None) -> list[Sequence[int]]:
    """The positions of each prompt at which the model's own logits are kept."""
    if isinstance(check, str):
        return [range(len(i)) for i in ids]
    return [[len(i) - 1] for i in ids] if check is None else [[p] for p in check]


def pads_change_nothing(model: Readable) -> bool:
    """Whether the end of a short prompt is the same beside a longer prompt as alone.

    Causal attention makes it so; a model that looks at the width of the batch, or treats the mask in
    a way of its own, is found out by trying.
    """
    ids = probe_ids(model.hf).tolist()[0]
    short, last = ids[: len(ids) // 2], [len(model.anatomy.blocks)]
    try:
        (alone,) = capture(model, [short], depths=last)
        beside = capture(model, [ids, short], depths=last)[1]
    except LogitLensError:
        return False
    logits = [model.tail.logits(r.h[-1]) for r in (alone, beside)]
    apart = distance(logits[0], logits[1], model.dtype)
    return apart.rounding <= ROUNDING * len(model.anatomy.blocks) ** 0.5


def parts_of(
    model: Readable,
    anatomy: Anatomy,
    stream: str,
    depths: list[int],
    batch: int,
    changes: Changes | None = None,
    watch: Took | None = None,
) -> tuple[list[Part], list[str]]:
    """What to hook, in this order, and the label of every row captured.

    What is edited is read as the edit left it: its hooks come before those that keep the stream.
    Raises PromptError for a stream that there is not.
    """
    if stream not in STREAMS:
        raise PromptError(f"stream={stream!r}: expected {', '.join(STREAMS)}")
    watchers = [watch] if watch is not None else []
    see, change = (None, None) if changes is None else (changes.see, changes.change)
    kept: AbstractContextManager[dict[Key, list[Tensor]]] = nullcontext({})
    inner: list[Key] = []
    last = len(anatomy.blocks)
    labels = [layer_label(d) for d in depths]
    if stream != "resid":
        name = type(model.hf).__name__
        has = model.heads.require(name) if stream == "head" else None
        has = model.sublayers.require(stream, name) if has is None else has
        blocks = [i for i in has if i + 1 in depths]
        if not blocks:
            raise PromptError(
                f"none of the layers chosen has the stream {stream!r}: expected some of "
                f"{', '.join(map(str, has))}"
            )
        if stream == "head":
            kept = model.heads.keeper(anatomy, blocks, batch, watchers)
            inner = [(i + 1, h) for i in blocks for h in range(model.heads.of(i).count)]
        else:
            own, keep = keeper(anatomy, model.sublayers, stream, blocks, batch)
            watchers.append(keep)
            kept = nullcontext(own)
            inner = [i + 1 for i in blocks]
        depths = [last]
        labels = [*(key_label(key, stream) for key in inner), layer_label(last)]
    context: AbstractContextManager[Any] = nullcontext()
    if stream != "resid" or watchers or change is not None:
        context = contributions(anatomy, model.sublayers, watchers, see=see, change=change)
    elif changes is not None and see is not None:
        context = anatomy.following(changes.depths, see)
    first = hooked(before=changes.heads if changes is not None else (), first=True)
    parts: list[Part] = [
        (_giving([first, context], kept), inner),
        (residual_hooks(anatomy, depths, batch), depths),
    ]
    return parts, labels


def key_label(key: Key, stream: str) -> str:
    """The label of a row that a pass keeps."""
    if isinstance(key, int):
        return f"{key - 1}.{stream}" if stream != "resid" else layer_label(key)
    return f"{key[0] - 1}.head{key[1]}"


@contextmanager
def _giving(
    contexts: Sequence[AbstractContextManager[Any]],
    kept: AbstractContextManager[dict[Key, list[Tensor]]],
) -> Iterator[dict[Key, list[Tensor]]]:
    """Inside the contexts; gives what `kept` gives."""
    with ExitStack() as stack:
        given = stack.enter_context(kept)
        for context in contexts:
            stack.enter_context(context)
        yield given


def _run(
    hf: nn.Module,
    anatomy: Anatomy,
    ids_BT: Tensor,
    parts: list[Part],
    extra: dict[str, Any],
    progress: Progress | None = None,
) -> tuple[Any, list[Tensor]]:
    """The model's output and, part after part, its stream (B, T, D) at each depth."""
    B, T = ids_BT.shape
    try:
        with refusing(hf, f"on {B} × {T} tokens"), as_found(hf), ExitStack() as stack:
            seen = [stack.enter_context(context) for context, _ in parts]
            if progress:
                stack.enter_context(reporting(anatomy, progress))
            output = forward(hf, ids_BT, **extra)
            logits_of(hf, output)
    except Ended as ended:
        raise ended.reason from None
    out = []
    for kept, (_, keys) in zip(seen, parts):
        for key in keys:
            found = kept.get(key, [])
            depth = key if isinstance(key, int) else key[0]
            if len(found) != 1:
                raise UnsupportedModel(
                    f"{type(hf).__name__}: block {max(depth - 1, 0)} of {anatomy.blocks_path} ran "
                    f"{len(found)} times in one forward pass; expected once, as when it was loaded"
                )
            if found[0].shape != (B, T, anatomy.width):
                raise UnsupportedModel(
                    f"{type(hf).__name__}: the stream of layer {layer_label(depth)} has shape "
                    f"{tuple(found[0].shape)}; expected {(B, T, anatomy.width)}"
                )
            out.append(found[0])
    return output, out


class Ended(BaseException):
    """Raised by a caller's own function, inside a model's pass; its reason is raised unchanged."""

    def __init__(self, reason: BaseException):
        self.reason = reason


def ending(function: Callable[..., object]) -> Callable[..., None]:
    """A caller's function; what it raises is no error of the model's, and ends the pass."""

    def call(*args: Any) -> None:
        try:
            function(*args)
        except Ended:
            raise
        except BaseException as error:
            raise Ended(error) from error

    return call


def reporting(anatomy: Anatomy, progress: Progress) -> AbstractContextManager[None]:
    """Inside, `progress` is called after every block."""
    tell = ending(progress)

    def hook(block: int) -> Hook:
        def report(module: nn.Module, args: Any, output: Any) -> None:
            tell("blocks", block + 1, len(anatomy.blocks))

        return report

    return hooked(after=[(block, hook(i)) for i, block in enumerate(anatomy.blocks)])


@contextmanager
def residual_hooks(
    anatomy: Anatomy, depths: Sequence[int], batch: int
) -> Iterator[dict[Key, list[Tensor]]]:
    """Inside, every pass of the model adds copies (B, T, D) of the stream at each of the depths.

    Copies, because models add into the stream in place.
    """
    kept: dict[Key, list[Tensor]] = {}

    def keep(depth: int, stream: Tensor) -> None:
        kept.setdefault(depth, []).append(anatomy.rows(stream.detach(), batch).clone())

    with anatomy.following(depths, keep):
        yield kept
