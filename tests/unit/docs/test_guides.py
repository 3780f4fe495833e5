"""Code on the pages of a language is that language's example, which other tests run."""

import base64
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

CHECKOUT = Path(__file__).parents[3]
GUIDES = CHECKOUT / "docs" / "guides"
EXAMPLES = {
    "python": CHECKOUT / "examples" / "shop.py",
    "js": CHECKOUT / "examples" / "node" / "shop.mjs",
}


def _blocks(language: str) -> list[tuple[str, str]]:
    """Return (page, code) of every piece in that language; two empty lines stand between pieces."""
    return [
        (page.name, piece.strip("\n"))
        for page in sorted(GUIDES.glob("*.md"))
        for block in re.findall(
            rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE
        )
        for piece in block.split("\n\n\n")
    ]


@pytest.mark.parametrize("language", EXAMPLES)
def test_code_of_the_guides_stands_in_the_example_word_for_word(language: str) -> None:
    example = EXAMPLES[language].read_text(encoding="utf-8")
    blocks = _blocks(language)
    assert blocks
    assert [(page, code) for page, code in blocks if code not in example] == []


def test_signature_to_compare_with_is_right() -> None:
    page = (GUIDES / "shops.md").read_text(encoding="utf-8")
    key = Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)
    assert "v1a," + base64.b64encode(key.sign(b"e-1.1764111600.{}")).decode() in page
    assert base64.b64encode(key.public_key().public_bytes_raw()).decode() in page
