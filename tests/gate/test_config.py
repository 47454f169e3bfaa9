"""Checks out of TOML: shared defaults, what overrides them, and one line with file and line for what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memplan.errors import UsageError
from memplan.gate.config import Configuration, read_configuration
from memplan.gate.keys import CHECK_KEYS, GATE_KEYS

TEXT = """[project]
name = "net"

[tool.memplan]
batch-size = 4
max-growth = "2%"
baseline = "limits/base.json"

[[tool.memplan.checks]]
name = "phone"
model = "mobilenet_v3"
budget = "64MB"
method = "mobiletl"
k = 5

[[tool.memplan.checks]]  # the same model, wholly trained
model = "mobilenet_v3"
batch-size = 8
of = "saved"
optimizer = "adam"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pyproject.toml"


def read(file: Path, text: str, overrides: dict[str, Any] | None = None, only: tuple[str, ...] = ()) -> Configuration:
    file.write_text(text)
    return read_configuration(file, overrides, only=only)


def test_defaults_are_shared_and_a_check_has_the_last_word(file: Path) -> None:
    configuration = read(file, TEXT)
    phone, whole = configuration.checks
    assert (phone.name, phone.method, phone.k, phone.of) == ("phone", "mobiletl", 5, "peak")
    assert phone.limits.budget_bytes == 64_000_000
    assert phone.limits.max_growth is not None
    assert phone.limits.max_growth.of(100) == 2
    assert dict(phone.subject) == {"batch_size": 4}
    assert (whole.name, whole.of, whole.optimizer, dict(whole.subject)) == (
        "mobilenet_v3",
        "saved",
        "adam",
        {"batch_size": 8},
    )
    assert whole.limits.budget_bytes is None
    assert [str(check.place) for check in configuration.checks] == [f"{file}:9", f"{file}:16"]
    assert configuration.baseline == file.parent / "limits" / "base.json"
    assert configuration.names == {"phone", "mobilenet_v3"}


def test_the_command_line_comes_before_the_file(file: Path) -> None:
    configuration = read(file, TEXT, {"batch-size": 2, "max-growth": "1MB", "baseline": "x.json", "threads": 8})
    assert [dict(check.subject)["batch_size"] for check in configuration.checks] == [2, 2]
    assert [check.limits.max_growth.text for check in configuration.checks if check.limits.max_growth] == ["1MB"] * 2
    assert configuration.baseline == Path("x.json")
    assert configuration.threads == 8


def test_a_check_may_be_chosen(file: Path) -> None:
    configuration = read(file, TEXT, only=("phone",))
    assert [check.name for check in configuration.checks] == ["phone"]
    assert configuration.names == {"phone", "mobilenet_v3"}
    with pytest.raises(UsageError, match=r"no check 'fone' in .*; did you mean 'phone'\?"):
        read(file, TEXT, only=("fone",))


def test_a_file_of_its_own_needs_no_table(tmp_path: Path) -> None:
    own = tmp_path / "memplan.toml"
    configuration = read(own, 'k = 2\n[[checks]]\nmodel = "resnet18"\nmethod = "top-k"\n')
    assert (configuration.checks[0].k, str(configuration.checks[0].place)) == (2, f"{own}:2")


def test_a_shared_k_is_for_methods_that_take_one(file: Path) -> None:
    text = '[tool.memplan]\nk = 3\n[[tool.memplan.checks]]\nname = "a"\nmodel = "m"\nmethod = "top-k"\n'
    text += '[[tool.memplan.checks]]\nname = "b"\nmodel = "m"\n'
    assert [check.k for check in read(file, text).checks] == [3, None]


def test_files_are_looked_for_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("")
    configuration = read(
        tmp_path / "memplan.toml", '[[checks]]\nmodel = "net.py:make"\nplan = "plans/a.json"\nweights = "w.pt"\n'
    )
    (check,) = configuration.checks
    assert check.model == f"{tmp_path}/net.py:make"
    assert check.plan == str(tmp_path / "plans" / "a.json")


HEAD = "[tool.memplan]\n"
CHECK = '[[tool.memplan.checks]]\nname = "a"\nmodel = "resnet18"\n'

#: Ten lines of strings and comments, in which headings and keys stand that are none.
STRINGS = """[tool.other]
a = '''
[[tool.memplan.checks]]
k = 1'''
b = \"\"\"it's \\\"
[[tool.memplan.checks]]
k = -1
\"\"\"
c = "'" # don't \"\"\"
d = ["", '"', '''''']
"""


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        (HEAD + 'bugdet = "1MB"\n' + CHECK, 2, "no key 'bugdet'; did you mean 'budget'?"),
        (HEAD + CHECK + "batch_size = 4\n", 5, "no key 'batch_size'; did you mean 'batch-size'?"),
        (HEAD + CHECK + "threads = 4\n", 5, "no key 'threads'"),
        (HEAD + 'name = "x"\n' + CHECK, 2, "no key 'name'"),
        (HEAD + CHECK + 'budget = "64MBB"\n', 5, "budget: cannot read '64MBB' as a size"),
        (
            HEAD + CHECK + f'budget = "{"9" * 5_001}"\n',
            5,
            "budget: a size must be at most 9,223,372,036,854,775,807 bytes",
        ),
        (HEAD + CHECK + f"budget = {'9' * 4_000}\n", 5, "budget is 999999999999999999...9999999999999999999; write at"),
        (HEAD + CHECK + f'max-growth = "{"9" * 5_001}%"\n', 5, "max-growth: cannot read '999999999999...99999999999"),
        (HEAD + CHECK + 'plan = "a\\u0000b"\n', 5, "plan is 'a\\x00b', with a null character"),
        (HEAD + 'baseline = "a\\u0000b"\n' + CHECK, 2, "baseline is 'a\\x00b', with a null character"),
        (HEAD + CHECK + "budget = 0\n", 5, "budget is 0, not a whole number from 1 on"),
        (HEAD + CHECK + "max-growth = 2\n", 5, 'max-growth is 2; write a percentage or a size in quotes, such as "2%"'),
        (HEAD + CHECK + 'max-growth = "2"\n', 5, "max-growth: '2' has no unit; write 2% or 2B"),
        (HEAD + CHECK + 'max-growth = "2 apples"\n', 5, "max-growth: cannot read '2 apples' as a growth"),
        (HEAD + CHECK + 'min-growth = "1MB"\n', 2, "min-growth without max-growth says nothing"),
        (HEAD + CHECK + 'max-growth = "1MB"\nmin-growth = "2MB"\n', 2, "max-growth 1MB never decides"),
        (HEAD + CHECK + 'max-growth = "64MB"\nbudget = "64MB"\n', 2, "is as much as the whole budget"),
        (HEAD + CHECK + 'method = "mobile-tl"\n', 5, "did you mean 'mobiletl'?"),
        (HEAD + CHECK + "k = 2\n", 2, "k needs a method that trains k blocks, not full"),
        (HEAD + CHECK + 'plan = "p.json"\nmethod = "last"\n', 2, "method is given with a plan"),
        (HEAD + CHECK + 'runner = "stock"\nmethod = "lossless"\n', 2, "stock PyTorch cannot run lossless"),
        (HEAD + CHECK + 'optimizer = "adamm"\n', 5, "did you mean 'adam'"),
        (HEAD + CHECK + 'of = "peek"\n', 5, "did you mean 'peak'?"),
        (HEAD + CHECK + "strict = 1\n", 5, "strict is 1, not true or false"),
        (HEAD + CHECK + 'input = "3x-1"\n', 5, "input: cannot read '3x-1' as an input shape"),
        (HEAD + CHECK + 'treatments = "bitmask"\n', 5, "treatments is 'bitmask', not a list of texts"),
        (HEAD + CHECK + CHECK, 5, "a check 'a' is at"),
        (HEAD + CHECK + CHECK.replace('"a"', '" a\\n"'), 5, "a check 'a' is at"),
        (
            HEAD + CHECK + 'max-growth = "2%"\nmin-growth = "64MB"\nbudget = "64MB"\n',
            2,
            "min-growth 64.0 MB is as much as",
        ),
        (HEAD + '[[tool.memplan.checks]]\nname = "a"\n', 2, "this check has no model"),
        (HEAD + "jobs = true\n" + CHECK, 2, "jobs is True, not a whole number from 1 on"),
        (HEAD + "x = = 1\n", 2, "this is not TOML"),
        (STRINGS + HEAD + CHECK + "k = -1\n", 15, "k is -1, not a whole number from 0 on"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(file: Path, text: str, line: int, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(file, text)
    message = str(caught.value)
    assert told in message
    assert message.startswith(f"{file}:{line}: "), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no table [tool.memplan]"),
        ("[tool.other]\nx = 1\n", "has no table [tool.memplan]"),
        (HEAD, "has no checks; write each under [[tool.memplan.checks]]"),
        (HEAD + "checks = 3\n", "has checks that are no tables"),
    ],
)
def test_a_file_without_checks_says_what_to_write(file: Path, text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(file, text)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = " + "[" * 3_000, "its brackets are nested too deep; correct it"),
        (f"{HEAD}jobs = {'9' * 5_001}\n{CHECK}", "a number in it has too many digits; correct it"),
    ],
)
def test_what_python_cannot_read_is_told_with_the_file(file: Path, text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(file, text)
    assert str(caught.value) == f"{file}: {told}"


def test_a_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"there is no 'pyproject\.toml' here; write checks under \[tool\.memplan\]"):
        read_configuration()


def test_an_override_is_told_as_an_option(file: Path) -> None:
    with pytest.raises(UsageError, match=r"^--budget \(or MEMPLAN_BUDGET\): cannot read '3 apples' as a size"):
        read(file, TEXT, {"budget": "3 apples"})


@pytest.mark.parametrize(
    ("own", "overrides", "blamed"),
    [
        ("", {"max-growth": "1MB", "min-growth": "5MB", "of": "saved"}, ["max-growth", "min-growth"]),
        ('min-growth = "5MB"\n', {"max-growth": "1MB"}, ["max-growth"]),
    ],
)
def test_a_contradiction_is_told_with_the_overrides_in_it(
    file: Path, own: str, overrides: dict[str, object], blamed: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        read(file, HEAD + CHECK + own, overrides)
    options = " and ".join(f"--{key} (or MEMPLAN_{key.replace('-', '_').upper()})" for key in blamed)
    own_words = f"{options}: check 'a' at {file}:2: max-growth 1MB never decides"
    assert str(caught.value).startswith(own_words)


def test_no_key_means_two_things() -> None:
    assert not CHECK_KEYS.keys() & GATE_KEYS.keys()
