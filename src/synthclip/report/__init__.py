"""The report: a run as one self-contained HTML file, and the stage that writes it."""

from collections.abc import Sequence

from synthclip.evaluation.results import ON_PUBLIC_DATA
from synthclip.keys import digest
from synthclip.recipe import Recipe
from synthclip.run.engine import Resources, Shard, Tick
from synthclip.run.stage import Stage, tokens_spent
from synthclip.run.store import Manifest, Outcome, ShardWriter

FILE = "report.html"


class Report(Stage):
    """One self-contained HTML file.

    `report/report.html` follows from the run's files alone. The copy at the top of the run, which is the
    one to open, says in addition when, where and in what time it was made, from the log.
    """

    name = "report"
    revision = 5
    reads = ("concepts", "captions", "match", "balance", "images", "train", "eval")
    sections = tuple(section for section in Recipe.model_fields if section != "engine")

    def shards(self) -> Sequence[Shard]:
        inputs = {stage: _digest(self.run.manifests(stage)) for stage in self.reads}
        if suites := self.run.manifests(ON_PUBLIC_DATA):
            inputs[ON_PUBLIC_DATA] = _digest(suites)
        return [Shard("all", inputs)]

    def resources(self) -> Resources:
        return Resources(max_workers=1)

    def make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        from synthclip.report.contents import read_contents
        from synthclip.report.page import render

        page = render(self.recipe.name, self.values, read_contents(self.run))
        writer.path(FILE).write_text(page, encoding="utf-8")
        tick(1)
        return Outcome(rows=1)

    def finish(self, manifests: Sequence[Manifest]) -> None:
        from synthclip.report.page import with_log
        from synthclip.textgen.spending import spent_and_planned

        page = self.run.file(self.name, FILE).read_text(encoding="utf-8")
        metrics = self.run.metrics()
        concepts = sum(manifest.rows for manifest in self.run.manifests("concepts"))
        spent = tokens_spent(metrics, "captions")
        said = spent_and_planned(self.recipe, concepts, spent) if spent else ""
        self.run.write_text(FILE, with_log(page, self.recipe, metrics, said))


def _digest(manifests: Sequence[Manifest]) -> str:
    parts: list[str] = []
    for manifest in manifests:
        parts += [manifest.shard, str(manifest.rows), str(dict(manifest.rejected)), str(dict(manifest.notes))]
        parts += [f"{entry.path} {entry.sha256}" for entry in manifest.files]
    return digest(*parts)
