"""Secrets in code.patch: masked in every shape, and the patch still applies."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from mlflow_track.record.git import patch
from mlflow_track.record.git.literals import mask_lines
from mlflow_track.record.git.patch import masked, sections, unquoted
from tests.secret_shapes import HARMLESS, SECRET, SHAPES

# `§` is the secret.
CODE = [
    'password = "§"',
    'password: str = "§"',
    "    api_key='§',",
    '{"password": "§", "x": 1}',
    'os.environ["OPENAI_API_KEY"] = "§"',
    'if password == "§":',
    'parser.add_argument("--password", type=str, default="§", help="asked for")',
    'x = os.getenv("DB_PASSWORD", "§")',
    "os.environ.setdefault('HF_TOKEN', '§')",
    'cmd = ["mysql", "--password", "§"]',
    'dsn = "host=h user=u password=§ dbname=d"',
    'headers = {"Authorization": f"Bearer §"}',
    'headers = "Authorization: token §"',
    'password = SecretStr("§")',
    'password = ("§")',
    'password = (\n    "§"\n    "§"\n)',
    'password = """§\nmore §"""',
    '"password":\n   "§"',
    'password = \\\n    "§"',
    'key = """-----BEGIN RSA PRIVATE KEY-----\n§\n-----END RSA PRIVATE KEY-----"""',
    "self.password = b'§'",
    'run("curl -u admin:§ http://h/")',
    'secret := "§"',
    "'password' => '§',",
    'foo = api_key = "§"',
    "URI = 'postgresql://u:§@h/d'",
]
# `§` is the secret.
OTHER = [
    "password: §",
    "password: § two  # a comment",
    "  api_key = §",
    "export AWS_SECRET_ACCESS_KEY=§",
    '{"password": "§"}',
    "<password>§</password>",
    "password: |\n  §\n  §b",
    "db:\n  password: >-\n    §\n  user: u",
    "credentials:\n  user: u\n  token: §",
    "password:\n  §",
    "db.password=§",
    "ENV API_KEY §",
    "machine h login u password §",
    "--password §",
]
KEPT = """
token = tokenizer.decode(ids)
password = os.environ["DB_PASSWORD"]
api_key = config["api_key"]
def f(password: str, token: str = "<s>"):
    if token:
token = getpass("Token: ")
password=args.password
self.token_embedding = nn.Embedding(vocab, dim)
parser.add_argument("--tokenizer", default="gpt2-1234")
for token in "abc": print(token == "a")
secret: str
"pad_token": "<pad>",
print(f"password={password}")
keyboard = "qwerty123"
PASSWORD = "${PASSWORD}"
sort_key = "loss1234"
password = None
columns = ["password", "user123"]
assert is_secret_name("password1")
"""


def in_patch(lines: list[str], path: str) -> str:
    return "\n".join(mask_lines(lines, path))


@pytest.mark.parametrize("text", CODE)
def test_a_literal_in_code_is_masked(text: str) -> None:
    lines = text.replace("§", SECRET).split("\n")
    for path in ("t.py", "t.txt"):
        got = in_patch(["x = 1", *lines, "y = 1"], path).split("\n")
        assert "canary7" not in "".join(got) and len(got) == len(lines) + 2
        assert (got[0], got[-1]) == ("x = 1", "y = 1")


@pytest.mark.parametrize("text", OTHER)
def test_a_value_in_a_configuration_is_masked(text: str) -> None:
    lines = text.replace("§", SECRET).split("\n")
    got = in_patch(["x: 1", *lines, "y: 1"], "conf.yaml").split("\n")
    assert "canary7" not in "".join(got) and len(got) == len(lines) + 2
    assert (got[0], got[-1]) == ("x: 1", "y: 1")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", ["conf.yaml", ".bashrc", "notes.md", "t.py"])
def test_a_secret_of_any_shape_is_masked_in_a_patch(shape: str, path: str) -> None:
    text = SHAPES[shape].format(SECRET)
    if path == "t.py":
        text = f"TEXT = {text!r}"
    got = in_patch(text.split("\n"), path)
    assert "canary7" not in got and got.count("\n") == text.count("\n")


@pytest.mark.parametrize("line", KEPT.strip().splitlines())
def test_code_without_a_secret_stays(line: str) -> None:
    assert in_patch([line, "    x = 1"], "t.py") == f"{line}\n    x = 1"


@pytest.mark.parametrize("line", HARMLESS)
def test_text_without_a_secret_stays(line: str) -> None:
    assert in_patch([line], "notes.md") == line


def test_numbers_are_masked_where_they_are_passwords() -> None:
    assert in_patch(["password = 123456", "num_passwords = 123456"], "t.py").split("\n") == [
        'password = "***"',
        "num_passwords = 123456",
    ]


# --- the patch applies ---


def git(*words: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    identity = ("-c", "user.name=n", "-c", "user.email=n@example.org")
    return subprocess.run(["git", *identity, *words], capture_output=True, check=check)


def masked_patch(files: dict[str, tuple[str, str]]) -> tuple[bytes, dict[str, str]]:
    """Commit the first text of each file, take the patch to the second, and mask it."""
    git("init", "-q")
    for name, (before, _) in files.items():
        Path(name).write_text(before)
    git("add", ".")
    git("commit", "-qm", "c")
    for name, (_, after) in files.items():
        Path(name).write_text(after)
    diff = git("diff", "--full-index", "HEAD").stdout
    git("checkout", "-q", ".")
    parts = {path: masked(path, section) for path, section in sections(diff)}
    return b"".join(text for text, _ in parts.values()), {p: w for p, (_, w) in parts.items() if w}


def applied(content: bytes) -> None:
    Path("p.patch").write_bytes(content)
    done = git("apply", "p.patch", check=False)
    assert done.returncode == 0, done.stderr


LINES = "".join(f"x{n} = {n}\n" for n in range(20))
SECRET_LINE = f"password = '{SECRET}'\n"


def test_new_secrets_are_masked_and_the_patch_applies() -> None:
    after = LINES.replace("x5 = 5\n", SECRET_LINE + "x5 = 6\n") + "end = 1"
    content, why = masked_patch({"a.py": (LINES, after), "b.py": ("", SECRET_LINE)})
    assert b"canary7" not in content and why == {}
    applied(content)
    assert Path("a.py").read_text() == after.replace(SECRET, "***")
    assert Path("b.py").read_text() == SECRET_LINE.replace(SECRET, "***")


@pytest.mark.parametrize("distance", [-3, -2, -1, 2, 3])
def test_a_secret_in_the_context_is_cut_off_and_the_patch_applies(distance: int) -> None:
    lines = LINES.splitlines(keepends=True)
    lines[10 + distance] = SECRET_LINE
    after = [*lines]
    after[10], after[19] = "x10 = 'new'\n", "x19 = 'new'\n"
    content, why = masked_patch({"a.py": ("".join(lines), "".join(after))})
    assert b"canary7" not in content and why == {} and b"***" not in content
    applied(content)
    assert Path("a.py").read_text() == "".join(after)


def test_a_secret_that_was_there_is_a_comment_and_the_rest_applies() -> None:
    lines = LINES.splitlines(keepends=True)
    before = [*lines[:10], SECRET_LINE, *lines[10:]]
    after = [*before]
    after[0], after[10], after[20] = "first = 1\n", "password = read()\n", "last = 1\n"
    only = ("token = 1\n" + SECRET_LINE, "token = 2\n" + SECRET_LINE.replace("7", "8"))
    files = {
        "a.py": ("".join(before), "".join(after)),
        "only.py": only,
        "z.py": (LINES, LINES + "z = 1\n"),
    }
    content, why = masked_patch(files)
    assert b"canary" not in content and list(why) == ["a.py", "only.py"]
    assert b"# -password = '***'\n# +password = read()\n" in content
    applied(content)
    got = Path("a.py").read_text().splitlines(keepends=True)
    assert got == [after[0], *before[1:20], after[20]]
    assert Path("z.py").read_text() == LINES + "z = 1\n" and Path("only.py").read_text() == only[0]


def test_the_heading_of_a_hunk_shows_no_secret() -> None:
    before = SECRET_LINE + LINES
    content, why = masked_patch({"a.txt": (before, before.replace("x15 = 15", "x15 = 16"))})
    assert b"canary7" not in content and why == {}
    applied(content)
    assert Path("a.txt").read_text() == before.replace("x15 = 15", "x15 = 16")


def test_a_deleted_file_with_a_secret_is_a_comment() -> None:
    git("init", "-q")
    Path("a.py").write_text(SECRET_LINE)
    Path("token.py").write_text(LINES)
    git("add", ".")
    git("commit", "-qm", "c")
    git("rm", "-q", "a.py", "token.py")
    parts = [masked(path, part) for path, part in sections(git("diff", "HEAD").stdout)]
    assert b"canary7" not in parts[0][0] and parts[0][1] and not parts[1][1]
    git("reset", "-q", "--hard")
    applied(parts[0][0] + parts[1][0])
    assert Path("a.py").exists() and not Path("token.py").exists()


@pytest.mark.parametrize("seed", range(6))
def test_any_patch_applies_and_shows_no_secret(seed: int) -> None:
    """What can be applied is applied as it was, but for masks in new lines."""
    chance = random.Random(seed)

    def line(number: int) -> str:
        return chance.choice([SECRET_LINE, "", *[f"token{number} = {chance.random()}\n"] * 6])

    before = [line(n) for n in range(60)]
    after = [
        chance.choice([text] * 9 + ["", line(n), text + line(n)]) for n, text in enumerate(before)
    ]
    end = chance.choice(["", "no end"])
    content, why = masked_patch({"a.py": ("".join(before), "".join(after) + end)})
    assert b"canary7" not in content
    if not content.startswith(b"# "):
        applied(content)
        if not why:
            expected = "".join(after) + end
            got = Path("a.py").read_text()
            assert got.replace("***", SECRET) == expected


def test_without_the_comments_such_a_patch_does_not_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""
    monkeypatch.setattr(patch, "_without_hidden_context", lambda hunk: hunk)
    content, _ = masked_patch({"a.py": (LINES + SECRET_LINE, LINES + "password = read()\n")})
    assert SECRET.encode() in content


@pytest.mark.parametrize("name", ["é.py", 'a"b.py', "a b.py", "a\tb.py", "a\\b.py", "b b/a b.py"])
def test_the_path_of_a_part_is_read(name: str) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    git("init", "-q")
    Path(name).write_text("x = 1\n")
    git("add", ".")
    content = git("diff", "--cached").stdout
    assert [path for path, _ in sections(content)] == [name]
    assert unquoted("plain.py") == "plain.py"
