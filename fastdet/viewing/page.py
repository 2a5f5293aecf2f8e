# SPDX-License-Identifier: BSD-3-Clause
"""The page of `fastdet view`: Streamlit runs this file anew at each change of a filter.

Only the pictures of the page that is shown are read. The filters are bound to the query of the
URL, so an address can be kept and sent. Names from files are escaped wherever Markdown is meant.
"""

import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html import escape

import numpy as np
import streamlit as st

from fastdet.analysing.errors import MEANINGS
from fastdet.evaluation.pictures import Colour, class_colour
from fastdet.report.page import data_url
from fastdet.viewing.collection import KIND_NUMBERS, Collection
from fastdet.viewing.drawing import draw, large, small
from fastdet.viewing.filtering import FOUND_BY, ORDERS, Filter, Range, Selection, select
from fastdet.viewing.gallery import Tile, gallery
from fastdet.viewing.marks import KIND_COLOURS, marks_on, picture_path, summary, table_of
from fastdet.viewing.server import shown

SMALL, LARGE = 320, 1600  # pixels of a picture's longer side
LEAST_LARGE = 900
ON_A_PAGE = 24
CLASSES_IN_LEGEND = 30
MASKS_AT_ONCE = 50_000  # annotations up to which masks are drawn without being asked for

KIND_HELP = {
    "correct": "finds an object of its class",
    **MEANINGS,
    "ignored": "in a crowd: neither right nor wrong",
}
FOUND_BY_TEXTS = {
    "any": "any or none",
    "only": "only {}",
    "others only": "others, not {}",
    "all": "all",
    "none": "none",
}

STYLE = """<style>
.stMainBlockContainer { padding: 3.5rem 2.5rem 3rem; }
.kinds { display: grid; gap: 10px; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); }
.kinds div { padding: 8px 10px; border-radius: 10px; border: 1px solid #8883; font-size: 0.85rem; }
.kinds p { margin: 0; font-size: 0.8rem; line-height: 1.5; } .kinds b { font-size: 1.15rem; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 0.85rem; }
.kinds i, .legend i { display: inline-block; width: 10px; height: 10px; border-radius: 3px;
  margin-right: 6px; }
</style>"""


def main() -> None:
    """Draws the page."""
    collection = shown()
    name = collection.data.resolve().name
    st.set_page_config(f"{name}, {collection.split}", layout="wide")
    st.html(STYLE)
    with st.sidebar:
        st.subheader(plain(f"{name}, {collection.split}"))
        asked, looks = _filter(collection), _looks(collection)
    chosen = select(collection, asked)
    opened = _opened(collection)
    if opened is None:
        _pages(collection, asked, chosen, looks)
    else:
        _large(collection, asked, chosen, looks, opened)


def plain(text: str) -> str:
    """Text whose every character Markdown shows as it is."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


def _filter(collection: Collection) -> Filter:
    annotations, sides = collection.annotations, collection.sides
    side, scores, kinds, found_by = 0, [], [], FOUND_BY[0]
    if len(sides) > 1:
        side = int(
            st.radio(
                "Detections",
                range(len(sides)),
                format_func=lambda number: plain(sides[number].name),
                key="detections",
                bind="query-params",
            )
            or 0
        )
    labels = {name: label for label, name in enumerate(annotations.names, 1)}
    names = st.multiselect("Class", list(labels), key="class", bind="query-params")
    if sides:
        scores = [_scores(collection, number) for number in range(len(sides))]
        kinds = st.pills(
            "Kind",
            list(KIND_NUMBERS),
            selection_mode="multi",
            key="kind",
            bind="query-params",
            help="  \n".join(f"**{kind}**: {meaning}" for kind, meaning in KIND_HELP.items()),
        )
        if len(sides) > 1:
            found_by = st.selectbox(
                "Objects found by",
                FOUND_BY,
                format_func=lambda word: FOUND_BY_TEXTS[word].format(sides[side].name),
                key="found_by",
                bind="query-params",
            )
    part = st.text_input("Name of the picture contains", key="name", bind="query-params")
    objects = _range("Objects in a picture", "objects", collection.object_counts)
    size = _range("Longer side of the picture", "size", annotations.image_sizes.max(axis=1))
    orders = [order for order in ORDERS if sides or order != "most errors"]
    order = st.selectbox("Order", orders, key="order", bind="query-params")
    return Filter(
        classes=frozenset(labels[name] for name in names),
        kinds=frozenset(kinds),
        scores=tuple(scores),
        side=side,
        found_by=found_by or "any",
        name=part,
        objects=objects,
        size=size,
        order=order or "file",
    )


def _scores(collection: Collection, number: int) -> Range:
    side = collection.sides[number]
    values = side.found.scores
    low = math.floor(min(values.min(initial=0), 0))
    high = math.ceil(max(values.max(initial=1), 1))
    best = math.floor(side.best_score * 100) / 100
    of = f" of {plain(side.name)}" if len(collection.sides) > 1 else ""
    return st.slider(
        f"Score{of}",
        float(low),
        float(high),
        (min(max(best, low), high), float(high)),
        0.01,
        key=f"score{number + 1}" if number else "score",
        bind="query-params",
        help="Objects without a detection from the lower score on are missed. "
        "At first it is the one with the best F1.",
    )


def _range(label: str, key: str, values: np.ndarray) -> Range:
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    if low == high:
        return -math.inf, math.inf
    return st.slider(label, low, high, (low, high), key=key, bind="query-params")


def _looks(collection: Collection) -> dict:
    looks: dict = {"truth": True, "found": False, "colouring": "class", "only": True}
    if collection.sides:
        looks["truth"] = st.toggle("Ground truth", True, key="truth", bind="query-params")
        looks["found"] = st.toggle("Detections", True, key="found", bind="query-params")
        looks["colouring"] = st.radio(
            "Colour by",
            ["kind of error", "class"],
            key="colour",
            horizontal=True,
            bind="query-params",
        )
    few = len(collection.annotations.labels) <= MASKS_AT_ONCE
    looks["masks"] = st.toggle("Masks", few, key="masks", bind="query-params")
    looks["captions"] = st.toggle("Captions", True, key="captions", bind="query-params")
    looks["only"] = st.toggle(
        "Only what is asked for",
        True,
        key="only",
        bind="query-params",
        help="Draw only the objects and detections that the filters choose, not all of a picture.",
    )
    return looks


def _opened(collection: Collection) -> int | None:
    """The picture that the URL opens."""
    text = st.query_params.get("picture", "")
    identity = int(text) if re.fullmatch(r"-?\d{1,19}", text) else None
    return None if identity is None else collection.index_of_id.get(identity)


def _pages(collection: Collection, asked: Filter, chosen: Selection, looks: dict) -> None:
    _numbers(collection, chosen, looks["colouring"])
    if not len(chosen.images):
        st.info("No picture has all that is asked for.")
        return
    pages = math.ceil(len(chosen.images) / ON_A_PAGE)
    page = 1
    if pages > 1:
        page = st.pagination(pages, key="page", bind="query-params")
    images = chosen.images[(page - 1) * ON_A_PAGE : page * ON_A_PAGE].tolist()
    with ThreadPoolExecutor() as pool:
        tiles = list(pool.map(lambda index: _tile(collection, asked, chosen, looks, index), images))
    clicked = gallery(tiles)
    if clicked is not None:
        st.query_params["picture"] = clicked
        st.rerun()


def _numbers(collection: Collection, chosen: Selection, colouring: str) -> None:
    annotations = collection.annotations
    text = (
        f"**{len(chosen.images):,}** of {len(annotations.image_ids):,} pictures, "
        f"**{int(chosen.objects.sum()):,}** objects"
    )
    if collection.sides:
        text += f", **{int(chosen.detections.sum()):,}** detections"
    st.markdown(text)
    if chosen.counts:
        cells = "".join(_cell(kind, *numbers) for kind, numbers in chosen.counts.items())
        st.html(f'<div class="kinds">{cells}</div>')
    if colouring == "class":
        names = annotations.names[:CLASSES_IN_LEGEND]
        spots = [
            f"<span>{_spot(class_colour(label))}{escape(name)}</span>"
            for label, name in enumerate(names, 1)
        ]
        st.html(f'<div class="legend">{"".join(spots)}</div>')


def _cell(kind: str, detections: int, objects: int) -> str:
    """The numbers of a kind, of what there can be of it."""
    lines = [] if kind == "missed" else [f"<b>{detections:,}</b> detections"]
    if kind not in ("both", "duplicate", "background"):
        lines.append(f"<b>{objects:,}</b> objects")
    return (
        f'<div id="kind-{kind}">{_spot(KIND_COLOURS[kind])}{kind}'
        f"{''.join(f'<p>{line}</p>' for line in lines)}</div>"
    )


def _spot(colour: Colour) -> str:
    return f'<i style="background:rgb{colour}"></i>'


def _rows(
    collection: Collection, asked: Filter, chosen: Selection, looks: dict, index: int
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of objects and detections that are drawn on a picture."""
    objects = collection.rows(index)
    detections = np.zeros(0, np.int64)
    if collection.sides:
        side = collection.sides[asked.side]
        low, high = asked.scores[asked.side]
        detections = side.rows(index)
        scores = side.found.scores[detections]
        detections = detections[(scores >= low) & (scores <= high)]
        if looks["only"]:
            detections = detections[chosen.detections[detections]]
    if looks["only"]:
        objects = objects[chosen.context[objects]]
    return objects, detections


def _marks(collection, asked, chosen, looks, index, objects, detections):
    nothing = np.zeros(0, np.int64)
    return marks_on(
        collection,
        index,
        asked.side,
        objects if looks["truth"] else nothing,
        detections if looks["found"] else nothing,
        chosen.object_kinds,
        looks["colouring"],
        looks["masks"],
    )


def _tile(
    collection: Collection, asked: Filter, chosen: Selection, looks: dict, index: int
) -> Tile:
    annotations = collection.annotations
    height, width = annotations.image_sizes[index].tolist()
    picture = small(picture_path(collection, index), (height, width), collection.pictures, SMALL)
    objects, detections = _rows(collection, asked, chosen, looks, index)
    marks = _marks(collection, asked, chosen, looks, index, objects, detections)
    kinds = []
    if collection.sides:
        kinds = collection.sides[asked.side].errors.kinds[detections].tolist()
    note = "cannot be read" if picture.error else summary(chosen, objects, kinds)
    return Tile(
        str(annotations.image_ids[index]),
        data_url(draw(picture, marks, captions=False)),
        annotations.file_names[index],
        note,
    )


def _large(
    collection: Collection, asked: Filter, chosen: Selection, looks: dict, index: int
) -> None:
    """One picture, with the table of its objects."""
    annotations = collection.annotations
    _steps(collection, chosen, index)
    height, width = annotations.image_sizes[index].tolist()
    path = picture_path(collection, index)
    picture = large(path, (height, width), collection.pictures, LEAST_LARGE, LARGE)
    if picture.error:
        st.error(plain(picture.error))
    sides = range(len(collection.sides)) if len(collection.sides) > 1 else [asked.side]
    columns = st.columns(len(sides))
    for column, side in zip(columns, sides, strict=True):
        of_side, of_chosen = asked, chosen
        if side != asked.side:
            of_side = replace(asked, side=side, kinds=frozenset())
            of_chosen = select(collection, of_side)
        objects, detections = _rows(collection, of_side, of_chosen, looks, index)
        marks = _marks(collection, of_side, of_chosen, looks, index, objects, detections)
        with column:
            if len(sides) > 1:
                st.markdown(f"**{plain(collection.sides[side].name)}**")
            st.image(draw(picture, marks, looks["captions"]), width="stretch")
            rows = table_of(collection, side, objects, detections, of_chosen.object_kinds)
            if rows:
                st.dataframe(rows, hide_index=True, height="content")


def _steps(collection: Collection, chosen: Selection, index: int) -> None:
    """The buttons to the pictures before and after this one, and back; and what it is."""
    annotations = collection.annotations
    at = np.flatnonzero(chosen.images == index)
    before, after = None, None
    if len(at):
        place = int(at[0])
        before = int(chosen.images[place - 1]) if place else None
        after = int(chosen.images[place + 1]) if place + 1 < len(chosen.images) else None
    back, previous, following, text = st.columns([1.2, 1.5, 1.4, 8], vertical_alignment="center")
    if back.button("Back", shortcut="Escape", width="stretch"):
        del st.query_params["picture"]
        st.rerun()
    for column, label, to, key in (
        (previous, "Previous", before, "Left"),
        (following, "Next", after, "Right"),
    ):
        if column.button(label, shortcut=key, disabled=to is None, width="stretch"):
            assert to is not None  # else it is disabled
            st.query_params["picture"] = str(annotations.image_ids[to])
            st.rerun()
    height, width = annotations.image_sizes[index].tolist()
    place = f", {int(at[0]) + 1:,} of {len(chosen.images):,}" if len(at) else ""
    text.markdown(
        f"**{plain(annotations.file_names[index])}**  \nimage id {annotations.image_ids[index]}, "
        f"{width} x {height}{place}"
    )


if __name__ == "__main__":
    main()
