"""Paints a deterministic picture from a prompt and a seed. It is no diffusion model, and its pictures say so."""

from __future__ import annotations

import colorsys
import hashlib
import io
import random
import textwrap

from PIL import Image, ImageDraw, ImageFilter, ImageFont

DISCLAIMER = "demonstration painter · not a diffusion model"
_SCALE = 2  # painted larger and shrunk, for smooth edges


def paint(prompt: str, seed: int, width: int, height: int) -> bytes:
    """A PNG of `width` × `height` pixels, the same for the same arguments."""
    chance = random.Random(hashlib.sha256(f"{seed}\n{prompt}".encode()).digest())  # noqa: S311 - a picture, not a secret
    hue = chance.random()
    image = _sky(width * _SCALE, height * _SCALE, hue)
    _sun(image, chance, hue)
    for layer in range(5):
        _hills(image, chance, hue, layer)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    _caption(image, prompt, seed)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _color(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _sky(width: int, height: int, hue: float) -> Image.Image:
    top, bottom = _color(hue, 0.65, 0.45), _color(hue + 0.12, 0.35, 0.98)
    column = Image.new("RGB", (1, 64))
    for y in range(64):
        share = y / 63
        red, green, blue = (round(a + (b - a) * share) for a, b in zip(top, bottom, strict=True))
        column.putpixel((0, y), (red, green, blue))
    return column.resize((width, height), Image.Resampling.BICUBIC)


def _sun(image: Image.Image, chance: random.Random, hue: float) -> None:
    radius = round(min(image.size) * chance.uniform(0.07, 0.16))
    x, y = (round(side * chance.uniform(0.2, 0.8)) for side in (image.width, image.height // 2))
    glow = Image.new("L", image.size, 0)
    draw = ImageDraw.Draw(glow)
    draw.ellipse((x - 2 * radius, y - 2 * radius, x + 2 * radius, y + 2 * radius), fill=90)
    glow = glow.filter(ImageFilter.GaussianBlur(radius * 0.7))
    ImageDraw.Draw(glow).ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    image.paste(Image.new("RGB", image.size, _color(hue + 0.14, 0.18, 1.0)), (0, 0), glow)


def _hills(image: Image.Image, chance: random.Random, hue: float, layer: int) -> None:
    base = image.height * (0.52 + 0.1 * layer)
    swing = image.height * 0.11
    heights = [chance.uniform(-swing, swing) for _ in range(7)]
    points: list[tuple[float, float]] = []
    for x in range(0, image.width + 8, 8):
        position = x / image.width * (len(heights) - 1)
        left = min(int(position), len(heights) - 2)
        share = position - left
        smooth = share * share * (3 - 2 * share)
        points.append((x, base + heights[left] * (1 - smooth) + heights[left + 1] * smooth))
    color = _color(hue + 0.05 * layer, 0.45 + 0.08 * layer, 0.72 - 0.13 * layer)
    ImageDraw.Draw(image).polygon([*points, (image.width, image.height), (0, image.height)], fill=color)


def _caption(image: Image.Image, prompt: str, seed: int) -> None:
    size = max(9, min(image.size) // 28)
    font = ImageFont.load_default(size)
    columns = max(8, round(image.width / (size * 0.56)))
    lines = [*textwrap.wrap(" ".join(prompt.split()), columns)[:3], f"seed {seed}", *textwrap.wrap(DISCLAIMER, columns)]
    draw = ImageDraw.Draw(image)
    y = image.height - (len(lines) + 0.5) * size * 1.3
    for line in lines:
        draw.text((size, y), line, font=font, fill="white", stroke_width=max(1, size // 12), stroke_fill="black")
        y += size * 1.3
