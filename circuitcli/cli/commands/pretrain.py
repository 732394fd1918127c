"""``circuit pretrain``."""

from circuitcli.cli.jobs import Call, show_plan
from circuitcli.cli.options import DRY_RUN, SEED, Flag

FLAGS = (
    Flag("pretrain.output", "--output", short="-o", metavar="DIR"),
    Flag("data.text", "--text", default="builtin:python"),
    Flag("data.field", "--field"),
    Flag("pretrain.tokenizer", "--tokenizer"),
    Flag("pretrain.steps", "--steps"),
    Flag("pretrain.checkpoints", "--checkpoints"),
    Flag("pretrain.log", "--log"),
    Flag("model.device", "--device"),
    *SEED,
)
EXTRAS = (DRY_RUN,)


def pretrain(call: Call) -> None:
    """Train a small GPT-2 on a text, from nothing.

    The result is a Hugging Face directory, which --model of other commands takes. A killed command goes on from its
    last state. Without a file of settings it trains what ships as builtin:tiny.

    \b
    circuit pretrain --config configs/shakespeare_64x4.toml --text shakespeare.txt --output gpt
    circuit pretrain --text books/ --tokenizer characters --steps 2000 --output gpt | circuit collect | circuit train
    circuit collect --model gpt/checkpoints/step1000 --text shakespeare.txt
    circuit render --curves --run gpt/training -o curves.svg
    """
    job = call.begin_model()
    from circuitcli.stages import pretrain as stage

    if call.extras["dry_run"]:
        return show_plan(stage.plan(job.request))
    job.emit(stage.run(job.request))
