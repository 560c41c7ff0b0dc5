"""Build the mini world's bundle: glyph images and the names people gave them.

    npm pack cldr-annotations-full && tar xzf cldr-annotations-full-*.tgz        # ./package
    apt-get download fonts-noto-color-emoji && dpkg -x fonts-noto-color-emoji_*.deb font
    python -m mmmeb_tasks.mini.bundle --cldr package \\
        --font font/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf --font-version 2.042-0+deb12u1

Images: Noto Color Emoji (Apache-2.0; the font file is under OFL 1.1). Names: the short names
(`tts`) of Unicode CLDR annotations (Unicode-3.0). A locale comes along when it names every
concept and no two alike; `--locales` narrows the choice, and then a missing one is an error.
"""

import argparse
import io
import json
import unicodedata
import zipfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

GLYPH_PIXELS = 64
FONT_PIXELS = 109  # the only size at which the font holds bitmaps

# English names of one or two words, distinct images at 20 pixels, distinct names in every locale.
CONCEPTS = (
    "🐕🐈🦁🐎🦓🐄🐖🐘🦏🐁🐇🦔🐼🦘🐓🐧🦆🦉🦩🦚🐊🐢🦎🐍🐬🐟🐙🦀🦋🐌🐝🐞🕷🦂🐒🦊🐪🦒🦈🐸🦜🦢🐏🦇"
    "🌹🌻🌷🌵🌴🍁🍄🌈⭐☀🌙❄🔥💧☁🌋"
    "🍇🍉🍋🍌🍍🍎🍏🍐🍒🍓🥝🍅🥥🥑🍆🥕🥦🧅🍞🥐🥨🥞🧀🍔🍟🍕🌭🌮🍿🍩🍪🎂🍭🍷🍺"
    "🚂🚌🚑🚓🚗🚜🚲⛵✈🚁🚀🛴⚓⛺🏠🏰⛲🎡"
    "⚽🏀🎾🏈🎳🎲🧩🎨👓👔👖🧦👗👠👑🎩💍🎒☂🧤"
    "🔔🎸🎺🎻🥁📱☎💻📷📺💡🕯📰✉📦✏✂📎🔒🔑🔨🪓🔧🧲🪜🔬🔭💉💊🚪🛏🪑🚽🛁🧸🧹🪣🎈🎁🏆🎃🪁⏰🧭💰💎"
)

BUNDLE = Path(__file__).parent / "data" / "world.zip"


def glyph(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One emoji as a square RGBA image, cropped to its ink and scaled to 64 pixels."""
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((12, 12), character, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise ValueError(f"the font has no image for {character!r} (U+{ord(character):04X})")
    ink = canvas.crop(box)
    side = max(ink.size)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
    return square.resize((GLYPH_PIXELS, GLYPH_PIXELS), Image.Resampling.LANCZOS)


def locale_names(cldr: Path, locale: str) -> dict[str, str]:
    """`{emoji: short name}` of one CLDR locale, for the emoji that have one."""
    path = cldr / "annotations" / locale / "annotations.json"
    if not path.is_file():
        known = ", ".join(sorted(p.name for p in (cldr / "annotations").iterdir()))
        raise ValueError(f"locale {locale!r} is not in {cldr}; it has: {known}")
    # A regional locale ("en-AU") may hold no annotations of its own.
    table = json.loads(path.read_text("utf-8"))["annotations"].get("annotations", {})
    return {emoji: unicodedata.normalize("NFC", entry["tts"][0]) for emoji, entry in table.items() if entry.get("tts")}


def usable(names: dict[str, str]) -> bool:
    """Whether a locale names every concept, and no two of them alike."""
    values = [names.get(c, "").casefold() for c in CONCEPTS]
    return all(values) and len(set(values)) == len(values)


def choose_locales(cldr: Path, wanted: Sequence[str]) -> dict[str, dict[str, str]]:
    """The wanted locales, or (none wanted) all usable ones; a wanted one that is not usable raises."""
    every = sorted(p.name for p in (cldr / "annotations").iterdir() if p.is_dir())
    chosen = {locale: locale_names(cldr, locale) for locale in wanted or every}
    bad = [locale for locale, names in chosen.items() if not usable(names)]
    if wanted and bad:
        raise ValueError(f"locales {bad} lack a name for a concept, or give two concepts the same name")
    return {locale: names for locale, names in chosen.items() if locale not in bad}


def build(cldr: Path, font_file: Path, font_version: str, locales: Sequence[str], out: Path) -> int:
    """Write the bundle to `out` (zip, same bytes for the same input) and return its size in bytes."""
    font = ImageFont.truetype(str(font_file), FONT_PIXELS)
    names = choose_locales(cldr, locales)
    package = json.loads((cldr / "package.json").read_text("utf-8"))
    world = {
        "sources": {
            "names": f"Unicode CLDR annotations, npm cldr-annotations-full {package['version']}, Unicode-3.0",
            "pictures": f"Noto Color Emoji, Debian fonts-noto-color-emoji {font_version}, Apache-2.0",
        },
        "concepts": [{"emoji": c, "names": {locale: table[c] for locale, table in names.items()}} for c in CONCEPTS],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as bundle:
        entries = [("world.json", json.dumps(world, ensure_ascii=False, indent=0).encode())]
        for character in CONCEPTS:
            buffer = io.BytesIO()
            glyph(character, font).save(buffer, "PNG", optimize=True)
            entries.append((f"glyphs/{ord(character):x}.png", buffer.getvalue()))
        entries.append(("LICENSE-Unicode-3.0.txt", (cldr / "LICENSE").read_bytes()))
        for name, data in entries:
            bundle.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return out.stat().st_size


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cldr", type=Path, required=True, help="unpacked npm package cldr-annotations-full")
    parser.add_argument("--font", type=Path, required=True, help="NotoColorEmoji.ttf")
    parser.add_argument("--font-version", required=True, help="recorded in the bundle")
    parser.add_argument("--locales", nargs="*", default=(), help="CLDR locales; default: every usable one")
    parser.add_argument("--out", type=Path, default=BUNDLE)
    args = parser.parse_args(argv)
    size = build(args.cldr, args.font, args.font_version, args.locales, args.out)
    print(f"{args.out}: {len(CONCEPTS)} concepts, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
