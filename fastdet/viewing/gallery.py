# SPDX-License-Identifier: BSD-3-Clause
"""A grid of pictures that can be clicked, as a component of the page.

Names are written as text (`textContent`), so nothing in them is ever HTML.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from streamlit.components import v2

CSS = """
.grid { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); }
button { display: flex; flex-direction: column; padding: 0; text-align: left; cursor: pointer;
  font: inherit; color: inherit; overflow: hidden; border-radius: 10px;
  background: var(--st-secondary-background-color);
  border: 1px solid var(--st-border-color); }
button:hover, button:focus-visible { border-color: var(--st-primary-color); outline: none; }
img { width: 100%; aspect-ratio: 4 / 3; object-fit: contain; display: block; background: #0002; }
span { display: block; padding: 0 10px; font-size: 0.8rem; overflow-wrap: anywhere; }
span.name { padding-top: 7px; font-weight: 600; }
span.note { padding-bottom: 9px; opacity: 0.75; }
"""

JS = """
export default function ({ data, parentElement, setTriggerValue }) {
  const grid = parentElement.querySelector(".grid");
  const tiles = data.tiles.map((tile) => {
    const button = document.createElement("button");
    const image = document.createElement("img");
    image.src = tile.source;
    image.alt = tile.name;
    button.append(image);
    for (const kind of ["name", "note"]) {
      const span = document.createElement("span");
      span.className = kind;
      span.textContent = tile[kind];
      button.append(span);
    }
    button.onclick = () => setTriggerValue("opened", tile.identity);
    return button;
  });
  grid.replaceChildren(...tiles);
}
"""

_component = v2.component("fastdet_gallery", html='<div class="grid"></div>', css=CSS, js=JS)


@dataclass(frozen=True)
class Tile:
    """One picture.

    Attributes:
        identity: what a click gives, as text, since an id may be larger than JavaScript's integers.
        source: its address, or the picture itself as a data URL.
        name, note: two lines below it.
    """

    identity: str
    source: str
    name: str
    note: str


def gallery(tiles: Sequence[Tile]) -> str | None:
    """Shows the pictures; the identity of one that was clicked."""
    data: dict[str, Any] = {"tiles": [asdict(tile) for tile in tiles]}
    return _component(key="gallery", data=data, on_opened_change=lambda: None).opened
