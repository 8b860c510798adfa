"""One configuration: options over environment over file over defaults, and every mistake named."""

import re
import tomllib
from pathlib import Path

import pytest

from dicomnode.domain.errors import ConfigurationError
from dicomnode.settings.delivery import DeliverySettings, DimseDestination, StowDestination
from dicomnode.settings.node import Settings, TlsSettings, parse_destination, parse_http, read_settings
from tests.conftest import ROOT


def written(folder: Path, text: str) -> Path:
    file = folder / "node.toml"
    file.write_text(text)
    return file


def test_options_override_environment_which_overrides_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, '[scp]\nport = 1001\nae_title = "FILE"\nbind = "127.0.0.1"\n')
    monkeypatch.setenv("CXRNODE_SCP__PORT", "1002")
    monkeypatch.setenv("CXRNODE_SCP__AE_TITLE", "ENVIRONMENT")
    settings = read_settings(file, {"scp": {"port": 1003}})
    assert (settings.scp.port, settings.scp.ae_title, settings.scp.bind) == (1003, "ENVIRONMENT", "127.0.0.1")


def test_the_shipped_file_holds_the_defaults() -> None:
    assert read_settings(ROOT / "conf" / "node.toml", {}).model_dump() == Settings().model_dump()


def test_the_pages_address_is_the_default_one_until_somebody_sets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, "[http]\nlocal_patients = true\n")
    for source in (None, file, ROOT / "conf" / "node.toml"):
        assert read_settings(source, {}).http.has_default_address
    assert not read_settings(None, {"http": parse_http("127.0.0.1:8080")}).http.has_default_address
    assert not read_settings(written(tmp_path, "[http]\nport = 8080\n"), {}).http.has_default_address
    assert not read_settings(written(tmp_path, '[http]\nbind = "127.0.0.1"\n'), {}).http.has_default_address
    monkeypatch.setenv("CXRNODE_HTTP__PORT", "8080")
    assert not read_settings(None, {}).http.has_default_address


def test_the_shipped_file_names_every_setting() -> None:
    general, destinations = _shipped().split("# [[delivery.destinations]]", 1)
    general += destinations[destinations.index("\n[log]") :]
    named = tomllib.loads(_uncommented(general))
    for section, field in Settings.model_fields.items():
        assert set(named[section]) == set(type(field.default).model_fields) - {"destinations"}, section


def test_the_shipped_file_shows_every_setting_of_each_kind_of_destination_with_its_default() -> None:
    _, *examples = _shipped().partition("\n[log]")[0].split("# [[delivery.destinations]]")
    kinds = {DimseDestination: examples[0], StowDestination: examples[1]}
    for kind, example in kinds.items():
        shown = tomllib.loads(_uncommented(example))
        assert set(shown) == set(kind.model_fields), kind.__name__
        defaults = {name: field.default for name, field in kind.model_fields.items() if not field.is_required()}
        for line in example.splitlines():
            if match := re.match(r"# (\w+) = .*# default$|# (\w+) = .*# default;", line):
                name = match[1] or match[2]
                if name in defaults and defaults[name] not in (None, ""):
                    assert shown[name] == (list(defaults[name]) if name == "outputs" else defaults[name]), name


def test_the_shipped_file_names_every_setting_of_tls() -> None:
    _, tls = _uncommented(_shipped()).split("[scp.tls]", 1)
    assert set(tomllib.loads(tls.split("\n[", 1)[0])) == set(TlsSettings.model_fields)


@pytest.mark.parametrize(
    ("tls", "said"),
    [
        ({"port": 2762}, "needs a certificate"),
        ({"key": "k.pem"}, "needs a certificate"),
        ({"certificate": "c.pem", "client_certificates": "required"}, "go together"),
        ({"certificate": "c.pem", "client_ca_file": "ca.pem"}, "go together"),
        ({"certificate": "c.pem", "port": 11112}, "must differ from scp.port"),
        ({"certificate": "c.pem", "minimum_version": "1.1"}, "minimum_version"),
    ],
)
def test_settings_of_tls_that_contradict_each_other_are_refused(tls: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        read_settings(None, {"scp": {"tls": tls}})


@pytest.mark.parametrize(
    ("tls", "ports"),
    [
        ({}, ((11112, False),)),
        ({"certificate": "c.pem"}, ((11112, True),)),
        ({"certificate": "c.pem", "port": 2762}, ((11112, False), (2762, True))),
    ],
)
def test_tls_takes_the_port_or_has_one_beside_it(tls: dict[str, object], ports: tuple[tuple[int, bool], ...]) -> None:
    assert read_settings(None, {"scp": {"tls": tls}}).scp.ports() == ports


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"ca_file": "ca.pem"}, "without tls"),
        ({"check_hostname": False}, "without tls"),
        ({"tls": True, "client_key": "k.pem"}, "without client_certificate"),
    ],
)
def test_a_destination_whose_tls_contradicts_itself_is_refused(more: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        read_settings(None, {"delivery": {"destinations": [{**PACS, **more}]}})


@pytest.mark.parametrize("network", ["10.0.0.1/8", "10.0.0.0/33", "pacs.example.org", ""])
def test_what_is_no_network_is_refused(network: str) -> None:
    with pytest.raises(ConfigurationError, match=r"scp\.networks"):
        read_settings(None, {"scp": {"networks": [network]}})
    with pytest.raises(ConfigurationError, match=r"scp\.calling_ae_networks"):
        read_settings(None, {"scp": {"calling_ae_networks": {"PACS": [network]}}})


def test_memory_for_less_than_two_objects_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least twice"):
        read_settings(None, {"scp": {"maximum_pending_bytes": 1_000_000_000}})


def _shipped() -> str:
    return (ROOT / "conf" / "node.toml").read_text()


def _uncommented(text: str) -> str:
    return re.sub(r"^# (?=[a-z_]+ = )", "", text, flags=re.MULTILINE)


def test_a_misspelt_key_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, "[scp]\nprot = 1\n")
    with pytest.raises(ConfigurationError, match=r"scp\.prot"):
        read_settings(file, {})


def test_broken_toml_is_said_to_be_broken(tmp_path: Path) -> None:
    file = written(tmp_path, "[scp\n")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_settings(file, {})


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no configuration file"):
        read_settings(tmp_path / "absent.toml", {})


@pytest.mark.parametrize("title", ["", " ", "SEVENTEEN_LETTERS", "back\\slash", "tab\t"])
def test_an_impossible_ae_title_is_refused(title: str) -> None:
    with pytest.raises(ConfigurationError, match="AE title"):
        read_settings(None, {"scp": {"ae_title": title}})


@pytest.mark.parametrize(
    ("text", "host"),
    [("PACS@localhost:104", "localhost"), ("MY PACS@[::1]:11112", "::1"), ("A@10.0.0.1:1", "10.0.0.1")],
)
def test_a_destination_is_read(text: str, host: str) -> None:
    assert parse_destination(text).host == host


@pytest.mark.parametrize("text", ["PACS", "PACS@host", "PACS@host:0", "PACS@host:99999", "@host:104", "PACS@:104"])
def test_a_malformed_destination_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_destination(text)


def test_two_destinations_of_one_name_are_refused() -> None:
    twice = {"destinations": [parse_destination("PACS@host:104").model_dump()] * 2}
    with pytest.raises(ConfigurationError, match="same name"):
        read_settings(None, {"delivery": twice})


STOW = {"kind": "stow", "name": "web", "url": "https://dicomweb.example.org/dicom-web/"}
PACS = {"name": "pacs", "ae_title": "PACS", "host": "pacs", "port": 104}


def delivery(**settings: object) -> DeliverySettings:
    return read_settings(None, {"delivery": settings}).delivery


def test_a_destination_is_dimse_unless_it_says_otherwise(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        '[[delivery.destinations]]\nae_title = "PACS"\nhost = "pacs"\nport = 104\n'
        '[[delivery.destinations]]\nkind = "stow"\nurl = "https://web/dicom-web/"\noutputs = ["sr"]\n',
    )
    pacs, web = read_settings(file, {}).delivery.destinations
    assert isinstance(pacs, DimseDestination)
    assert isinstance(web, StowDestination)
    assert (pacs.label, web.label) == ("PACS@pacs:104", "https://web/dicom-web")
    assert (pacs.outputs, web.outputs) == (("sr", "sc"), ("sr",))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kind": "ftp"}, "ftp"),
        ({**STOW, "url": "ftp://host/"}, "http or https"),
        ({**STOW, "url": "https://user:pa55word@host/"}, "no user or password"),
        ({**STOW, "url": "https://host/?token=pa55word"}, "no query"),
        ({**STOW, "authentication": "basic", "username": "u"}, "secret_file or secret_env"),
        ({**STOW, "authentication": "bearer", "secret_env": "A", "secret_file": "b"}, "secret_file or secret_env"),
        ({**STOW, "authentication": "basic", "secret_env": "A"}, "has a username"),
        ({**STOW, "authentication": "bearer", "username": "u", "secret_env": "A"}, "has a username"),
        ({**STOW, "authentication": "bearer", "secret_env": "pa55word!"}, "name of an environment variable"),
        ({**STOW, "secret_env": "A"}, "without authentication"),
        ({**STOW, "token": "pa55word"}, "token"),
        ({**STOW, "client_key": "k"}, "without client_certificate"),
        ({**STOW, "verify_tls": False, "ca_file": "c"}, "no meaning"),
        ({**PACS, "outputs": []}, "outputs"),
        ({**PACS, "outputs": ["sr", "sr"]}, "twice"),
        ({**PACS, "outputs": ["dance"]}, "outputs"),
        ({**PACS, "series_description_prefix": "a\\b"}, "series_description_prefix"),
        ({**PACS, "url": "https://host"}, "url"),
    ],
)
def test_a_wrong_destination_is_refused_and_no_secret_is_repeated(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)) as raised:
        delivery(destinations=[wrong])
    assert "pa55word" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"routes": [{"calling_ae": "CT_*", "destinations": ["pacs", "nowhere"]}]}, "the rule for calling_ae 'CT_*'"),
        ({"return_to_sender": {"MR": "nowhere"}}, "the entry for 'MR'"),
        ({"default_destinations": ["nowhere"]}, "default_destinations"),
    ],
)
def test_a_rule_that_names_an_unknown_destination_is_named(settings: dict[str, object], where: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        delivery(destinations=[PACS], **settings)
    assert where in str(raised.value)
    assert "'nowhere'" in str(raised.value)


def test_a_secret_comes_from_a_file_or_the_environment_as_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    of_file = delivery(destinations=[{**STOW, "authentication": "bearer", "secret_file": str(file)}]).destinations[0]
    of_variable = delivery(destinations=[{**STOW, "authentication": "bearer", "secret_env": "A_TOKEN"}]).destinations[0]
    assert isinstance(of_file, StowDestination)
    assert isinstance(of_variable, StowDestination)
    for value in ("first", "second"):
        file.write_text(f"{value}\n")
        monkeypatch.setenv("A_TOKEN", value)
        assert (of_file.secret(), of_variable.secret()) == (value, value)


@pytest.mark.parametrize("content", [None, b"", b"\n", b"two\nlines", b"\xff\xfe"])
def test_a_secret_that_cannot_be_one_names_its_place(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    (entry,) = delivery(destinations=[{**STOW, "authentication": "bearer", "secret_file": str(file)}]).destinations
    assert isinstance(entry, StowDestination)
    with pytest.raises(ConfigurationError, match="token"):
        entry.secret()


@pytest.mark.parametrize(
    ("changes", "exposed"),
    [({}, False), ({"url": "http://host/"}, True), ({"verify_tls": False}, True)],
)
def test_a_secret_in_the_clear_is_known(changes: dict[str, object], exposed: bool) -> None:
    settings = {**STOW, "authentication": "bearer", "secret_env": "A", **changes}
    (entry,) = delivery(destinations=[settings]).destinations
    assert isinstance(entry, StowDestination)
    assert entry.exposes_secret is exposed


def test_the_example_in_the_readme_is_a_configuration(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    read = read_settings(written(tmp_path, example), {}).delivery
    assert [entry.label for entry in read.destinations] == ["pacs-a", "cloud"]
    assert read.routing().default == ("cloud",)
