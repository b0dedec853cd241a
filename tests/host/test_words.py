"""The words of the editor: each node has names, tooltips and a help page with a picture, in every language."""

import ast
import json
import re
import urllib.error

import pytest

from tools.authoring import notes
from tools.authoring import words as locales
from tools.authoring.words import LANGUAGES, LOCALES
from tools.comfy.server import PACK
from tools.host import ROOT

DOCS = ROOT / "web" / "docs"
TRANSLATIONS = [language for language in LANGUAGES if language != "en"]
SCRIPTS = {"en": r"[A-Za-z]", "zh": r"[\u4e00-\u9fff]", "ru": r"[А-Яа-яЁё]"}
# Words of the field that a language takes over as they are.
KEPT = {"zh": {"Latent"}, "ru": set()}
SECTIONS = {
    "en": ["When to use it", "Inputs", "Outputs", "Time and memory", "Common mistakes"],
    "zh": ["何时使用", "输入", "输出", "时间与内存", "常见错误"],
    "ru": ["Когда использовать", "Входы", "Выходы", "Время и память", "Частые ошибки"],
}
INPUTS, OUTPUTS, MISTAKES = 1, 2, 4
ITEM = re.compile(r"^- \*\*(?P<name>[^*]+)\*\*(?: ?[（(]`(?P<id>\w+)`)?", re.MULTILINE)
PICTURE = re.compile(r"!\[(?P<alt>[^\]]+)\]\((?P<path>[^)]+)\)")
PICTURE_BYTES = 40_000


@pytest.fixture(scope="module")
def english(pack_nodes):
    """What the nodes' schemas say."""
    return locales.english({id: node.GET_NODE_INFO_V1() for id, node in pack_nodes.items()})


def read(language, name="nodeDefs"):
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def flat(words, path=()):
    """{("KandinskyVideoKeyframes", "inputs", "frames", "name"): "frames", ...}"""
    if isinstance(words, str):
        return {path: words}
    return {key: text for name, inner in words.items() for key, text in flat(inner, (*path, name)).items()}


def numbers(text):
    return sorted(re.findall(r"\d+(?:\.\d+)?", re.sub(r"(\d),(\d)", r"\1.\2", text)))


def test_english_is_what_the_nodes_say(english):
    assert read("en") == english, "run tools/authoring/words.py"


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_every_word_is_translated(english, language):
    expected, found = flat(english), flat(read(language))
    assert found.keys() - expected.keys() == set(), "words for nothing that is there"
    assert expected.keys() - found.keys() == set(), "words that are missing"
    for key, text in found.items():
        assert text in KEPT[language] or re.search(SCRIPTS[language], text) and text != expected[key], (key, text)
        assert numbers(text) == numbers(expected[key]), (key, text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_editor_can_read_the_words(language):
    """To the editor's translator these signs are commands."""
    for key, text in flat(read(language)).items():
        assert text.strip() and not set(text) & set("@{}|"), (key, text)


def test_the_category_and_the_templates_have_a_title(pack_nodes):
    categories = {part for node in pack_nodes.values() for part in node.GET_SCHEMA().category.split("/")}
    places = {("nodeCategories", part) for part in categories} | {("templateWorkflows", "category", PACK)}
    for language in LANGUAGES:
        words = flat(read(language, "main"))
        assert words.keys() == places, language
        assert all(re.search(SCRIPTS[language], title) for title in words.values()), language


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_every_note_is_translated(language):
    """The same lines with the same numbers, and a place for all that is filled in."""
    for english in notes.NOTES.glob("en/*.md"):
        expected, found = notes.read("en", english.stem), notes.read(language, english.stem)
        assert len(found.splitlines()) == len(expected.splitlines()), english
        assert numbers(found) == numbers(expected), english
        assert re.findall(r"{\w+}", found) == re.findall(r"{\w+}", expected), english
        for line in found.splitlines():
            assert re.search(SCRIPTS[language], line) or not line or line.startswith("{"), line
    assert len(list(notes.NOTES.glob("en/*.md"))) == len(list(notes.NOTES.glob(f"{language}/*.md")))


def page_path(id, language):
    return DOCS / f"{id}.md" if language == "en" else DOCS / id / f"{language}.md"


def page_parts(id, language):
    """The title, what comes before the first section, and the sections: heading -> text."""
    start, *sections = re.split(r"^## ", page_path(id, language).read_text(encoding="utf-8"), flags=re.MULTILINE)
    title, introduction = start.removeprefix("# ").split("\n", 1)
    return title, introduction, dict(section.split("\n", 1) for section in sections)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_a_help_page(english, language):
    words = read(language)
    for id in english:
        title, introduction, sections = page_parts(id, language)
        assert title == words[id]["display_name"]
        assert list(sections) == SECTIONS[language], id
        for text in (introduction, *sections.values()):
            assert re.search(SCRIPTS[language], text) and not text.isspace(), id
        for section, kind in ((INPUTS, "inputs"), (OUTPUTS, "outputs")):
            named = [(item["name"], item["id"]) for item in ITEM.finditer(sections[SECTIONS[language][section]])]
            ids = [each["name"] for each in english[id][kind].values()]
            names = [each["name"] for each in words[id][kind].values()]
            assert named == list(zip(names, [None] * len(ids) if language == "en" else ids)), (id, kind)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_help_page_has_its_picture(english, language):
    for id in english:
        (picture,) = PICTURE.finditer(page_parts(id, language)[1])
        assert picture["path"] == f"images/{id}.jpg", "the editor looks for it from web/docs"
        assert re.search(SCRIPTS[language], picture["alt"]), id
        assert 1000 < (DOCS / picture["path"]).stat().st_size <= PICTURE_BYTES, id


def test_no_help_is_left_over(english):
    found = {path for path in DOCS.rglob("*") if path.is_file()}
    pages = {page_path(id, language) for id in english for language in LANGUAGES}
    assert found == pages | {DOCS / "images" / f"{id}.jpg" for id in english}


@pytest.fixture(scope="module")
def messages():
    """A pattern for every sentence in the code, with anything in the place of what is put in."""
    found = set()
    for path in [*(ROOT / "nodes").rglob("*.py"), *(ROOT / "kv_core").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [part.value if isinstance(part, ast.Constant) else "\0" for part in parts]
            if all(isinstance(text, str) for text in texts) and len("".join(texts)) > 20:
                found.add("".join(texts))
    return [re.escape(text).replace("\0", ".+") for text in found]


def quoted(id, language):
    """The messages among a page's common mistakes; words without a space are values or files."""
    mistakes = page_parts(id, language)[2][SECTIONS[language][MISTAKES]]
    return [text for text in re.findall(r"`([^`]+)`", mistakes) if " " in text]


def test_quoted_messages_are_the_nodes_own(english, messages):
    # Of a file, its name is put before the sentence and a full stop behind it.
    patterns = [re.compile(rf"(\S+ )?{pattern}\.?") for pattern in messages]
    for id in english:
        for text in quoted(id, "en"):
            assert any(pattern.fullmatch(text) for pattern in patterns), (id, text)


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_translations_quote_the_same_messages(english, language):
    for id in english:
        assert quoted(id, language) == quoted(id, "en"), id


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_server_gives_the_words(server, english, language):
    served = server.client.get("/i18n")[language]
    assert served["nodeDefs"] == read(language)
    assert {key: served[key] for key in read(language, "main")} == read(language, "main")
    for id in english:
        picture = f"images/{id}.jpg"
        for path in (page_path(id, language), DOCS / picture):
            name = path.relative_to(DOCS).as_posix()
            assert server.client.request(f"/extensions/{PACK}/docs/{name}") == path.read_bytes(), name


def test_the_editor_falls_back_to_english(server, english):
    """It asks for its language first, and must not be given another page in its place."""
    for id in english:
        with pytest.raises(urllib.error.HTTPError, match="404"):
            server.client.request(f"/extensions/{PACK}/docs/{id}/ja.md")
