"""The Arrow schema of every hand-over between stages."""

import pyarrow as pa

SCHEMA_VERSION = "2"
"""Of a run directory: raised when what one holds is laid out in another way."""
SPLITS = ("train", "heldout")
"""What the selected captions, and the images of them, are divided into: the folders of their shards."""


def _schema(*fields: tuple[str, pa.DataType], version: str = "1") -> pa.Schema:
    """A table; `version` is the one of the run directory that last changed its columns."""
    return pa.schema(
        [pa.field(name, kind) for name, kind in fields],
        metadata={"synthclip_schema": version},
    )


REJECTED = _schema(("item", pa.string()), ("reason", pa.string()))
"""What a stage refused, where it has no schema of its own for that."""

CONCEPT = _schema(
    ("concept_id", pa.int32()),
    ("text", pa.string()),
    ("source", pa.string()),
)

REJECTED_CONCEPT = _schema(("text", pa.string()), ("source", pa.string()), ("reason", pa.string()))

CAPTION = _schema(
    ("caption_id", pa.uint64()),
    ("concept_id", pa.int32()),
    ("text", pa.string()),
    ("template", pa.string()),
    ("model", pa.string()),
    ("seed", pa.uint64()),
)

REJECTED_CAPTION = CAPTION.append(pa.field("reason", pa.string()))

MATCH = _schema(
    ("caption_id", pa.uint64()),
    ("concept_ids", pa.list_(pa.int32())),
)

SELECTED = _schema(
    ("caption_id", pa.uint64()),
    ("text", pa.string()),
    ("concept_ids", pa.list_(pa.int32())),
    ("keep_probability", pa.float32()),
)

NEAR_DUPLICATE = _schema(
    ("caption_id", pa.uint64()),
    ("text", pa.string()),
    ("near_caption_id", pa.uint64()),
    ("reason", pa.string()),
)
"""What balancing refuses, and the caption that shares its words."""

BALANCE_COUNT = _schema(
    ("concept_id", pa.int32()),
    ("matched", pa.int64()),
    ("selected", pa.int64()),
)

IMAGE = _schema(
    ("key", pa.string()),
    ("caption_id", pa.uint64()),
    ("text", pa.string()),
    ("concept_ids", pa.list_(pa.int32())),
    ("variant", pa.int32()),
    ("seed", pa.uint64()),
    ("backend", pa.string()),
    ("sha256", pa.string()),
    ("width_px", pa.int32()),
    ("height_px", pa.int32()),
    ("scores", pa.map_(pa.string(), pa.float32())),
    ("shard", pa.string()),
    ("offset", pa.int64()),
    ("length", pa.int64()),
)

REJECTED_IMAGE = _schema(
    ("key", pa.string()),
    ("caption_id", pa.uint64()),
    ("variant", pa.int32()),
    ("seed", pa.uint64()),
    ("backend", pa.string()),
    ("text", pa.string()),
    ("reason", pa.string()),
    ("scores", pa.map_(pa.string(), pa.float32())),
    ("attempt", pa.int32()),
)

EVAL_RESULT = _schema(
    ("dataset", pa.string()),
    ("task", pa.string()),
    ("metric", pa.string()),
    ("value", pa.float64()),
    ("ci95_low", pa.float64()),
    ("ci95_high", pa.float64()),
    ("chance", pa.float64()),
    ("n", pa.int64()),
    ("checkpoint", pa.string()),
    ("step", pa.int64()),
)
"""One figure of a model. Figures taken in training have a `step`, the steps done before, and no checkpoint;
all others have a checkpoint and no step."""

EVAL_CLASS = _schema(
    ("dataset", pa.string()),
    ("class_id", pa.int32()),
    ("name", pa.string()),
    ("n", pa.int64()),
    ("top1", pa.float64()),
    ("top5", pa.float64()),
    ("confused_with", pa.string()),
    ("confused_n", pa.int64()),
)
"""Zero-shot by class, for classes with an image: the shares right, and the class that most of the wrong
top-1 answers named, with how many did."""

EVAL_ITEM = _schema(
    ("dataset", pa.string()),
    ("task", pa.string()),
    ("metric", pa.string()),
    ("item", pa.string()),
    ("value", pa.float64()),
    ("group", pa.int64()),
)
"""What each result was taken over, item by item, so that two models can be compared in pairs. Items of one
`group`, such as the images of one caption, are one observation; null where each is its own."""

EVAL_NEAREST = _schema(
    ("text", pa.string()),
    ("rank", pa.int32()),
    ("key", pa.string()),
    ("score", pa.float64()),
    ("right", pa.bool_()),
)
"""The images nearest to a few held-out captions; `right` where an image was painted from that caption."""
