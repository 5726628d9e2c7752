"""The texts of all nodes in the form the editor translates: `locales/en` is made of the schemas, the others follow it.

.venv/bin/python dev/locales.py          # writes locales/en/nodeDefs.json
.venv/bin/python dev/locales.py --check  # lists what the other languages lack or have too much
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCALES = ROOT / "locales"
LANGUAGES = ("zh", "ja", "ko", "fr", "de", "es")

Texts = dict[str, Any]


def texts_of(object_info: Mapping[str, Any], pack: str) -> Texts:
    """Node id -> display name, description, inputs and outputs, from the host's answer to /object_info."""
    module = f"custom_nodes.{pack}"
    texts = {name: _texts(node) for name, node in object_info.items() if node["python_module"] == module}
    return _escaped(texts)


def _escaped(value: Any) -> Any:
    """All texts with the characters quoted that have a meaning in the editor's messages."""
    if isinstance(value, dict):
        return {key: _escaped(each) for key, each in value.items()}
    return re.sub("[{}@|]", lambda found: f"{{'{found[0]}'}}", value)


def _texts(node: Mapping[str, Any]) -> Texts:
    inputs = {
        name: {"name": _options(spec).get("display_name") or name, "tooltip": _options(spec)["tooltip"]}
        for section in ("required", "optional")
        for name, spec in node["input"].get(section, {}).items()
    }
    outputs = {
        str(number): {"name": name, "tooltip": tooltip}
        for number, (name, tooltip) in enumerate(zip(node["output_name"], node["output_tooltips"], strict=True))
    }
    about = {"display_name": node["display_name"], "description": node["description"]}
    return {**about, "inputs": inputs, **({"outputs": outputs} if outputs else {})}


def _options(spec: list[Any]) -> Mapping[str, Any]:
    options: Mapping[str, Any] = spec[1] if len(spec) > 1 else {}
    return options


def path_of(language: str) -> Path:
    """The file of a language."""
    return LOCALES / language / "nodeDefs.json"


def read(language: str) -> Texts:
    """A language's texts; empty when it has none yet."""
    path = path_of(language)
    texts: Texts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return texts


def write(language: str, texts: Texts) -> None:
    """Replaces a language's file."""
    path_of(language).parent.mkdir(parents=True, exist_ok=True)
    path_of(language).write_text(json.dumps(texts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def leaves(texts: Texts, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Place and text of every string."""
    for key, value in texts.items():
        if isinstance(value, dict):
            yield from leaves(value, (*place, key))
        else:
            yield (*place, key), value


def differences(english: Texts, other: Texts) -> list[str]:
    """What another language lacks, has too much, or has left in English."""
    want, have = dict(leaves(english)), dict(leaves(other))
    lacks = [f"lacks {'.'.join(place)}" for place in want if not have.get(place)]
    unknown = [f"has {'.'.join(place)}, which no node has" for place in have if place not in want]
    prose = [place for place in want if place[-1] in ("tooltip", "description") and have.get(place) == want[place]]
    return [*lacks, *unknown, *(f"has {'.'.join(place)} in English" for place in prose)]


def main(arguments: list[str]) -> int:
    """Writes English from a running host's nodes, or checks the other languages against it."""
    if "--check" in arguments:
        found = {language: differences(read("en"), read(language)) for language in LANGUAGES}
        for language, problems in found.items():
            print(f"{language}: {len(problems)} differences", *problems[:20], sep="\n  ")
        return int(any(found.values()))
    from host import PACK_NAME, HeadlessHost

    with HeadlessHost() as host:
        write("en", texts_of(host.object_info(), PACK_NAME))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
