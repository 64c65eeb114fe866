"""Stack three pictures of the demo into the one that the README shows.

make demo && python docs/make_picture.py
"""

from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
SHOWN = ("good/0002_normal", "lesion/0000_bright", "lesion/0001_dark")


def main() -> None:
    """Write docs/images/overlays.png."""
    folder = HERE.parent / "demo" / "scored" / "overlays" / "test"
    pictures = [Image.open(folder / f"{name}.png") for name in SHOWN]
    size = max(p.width for p in pictures), sum(p.height for p in pictures)
    sheet = Image.new("RGB", size)
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    sheet.resize((size[0] * 3 // 4, size[1] * 3 // 4)).save(
        HERE / "images" / "overlays.png", optimize=True
    )


if __name__ == "__main__":
    main()
