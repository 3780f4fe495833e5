"""The AsyncAPI document is one by AsyncAPI's own schema, which its makers publish as a package for Node."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from jsonschema import Draft7Validator

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[2]


@pytest.fixture(scope="module")
def specifications() -> Path:
    """AsyncAPI's schemas, which npm installs as the lock beside this file pins them."""
    installed = CHECKOUT / ".local" / "asyncapi-specifications"
    installed.mkdir(parents=True, exist_ok=True)
    for file in ("package.json", "package-lock.json"):
        shutil.copy(HERE / file, installed / file)
    npm = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
    subprocess.run(npm, cwd=installed, check=True, timeout=100)
    return installed / "node_modules" / "@asyncapi" / "specs" / "schemas"


def test_committed_document_is_valid_by_asyncapis_own_schema(specifications: Path) -> None:
    document = json.loads((CHECKOUT / "docs" / "asyncapi.json").read_text(encoding="utf-8"))
    schema = json.loads((specifications / f"{document['asyncapi']}-without-$id.json").read_text())
    validator = Draft7Validator(schema)
    assert [
        f"{list(error.absolute_path)}: {error.message[:200]}" for error in validator.iter_errors(document)
    ] == []
    # The schema does judge: a document without channels' form, or of another version, is refused.
    assert not validator.is_valid(document | {"channels": []})
    assert not validator.is_valid(document | {"asyncapi": "2.6.0"})
