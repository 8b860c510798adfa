"""The node's configuration: one frozen section for each part of the node, read once and checked as a whole.

Command line options take precedence over `CXRNODE_…` environment variables (`CXRNODE_SCP__PORT=11113`), those over the
TOML file, and that over the defaults here.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from dicomnode.domain.coding import as_text, from_text
from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.identifiers import is_valid_uid
from dicomnode.domain.terminology import IMAGING_PROCEDURE, PROCESSING_EQUIPMENT
from dicomnode.settings.delivery import (
    AeTitle,
    CallingAeTitle,
    DeliverySettings,
    DimseDestination,
    Network,
    Port,
    Section,
)
from dicomnode.settings.explanation import ENVIRONMENT_PREFIX, NESTED, explain, explain_json, unknown_variables
from dicomnode.settings.http import HttpSettings

_HOST, _PORT = r"(?P<host>\[[^\]]+\]|[^@:]+)", r"(?P<port>[0-9]{1,5})"
_HTTP_ADDRESS = re.compile(rf"({_HOST}:)?{_PORT}")
_DESTINATION = re.compile(rf"(?P<ae>[^@]+)@{_HOST}:{_PORT}")


def _uid(value: str) -> str:
    if not is_valid_uid(value):
        raise ValueError(f"{value!r} is not a DICOM UID")
    return value


Uid = Annotated[str, AfterValidator(_uid)]


class TlsSettings(Section):
    """TLS of the Storage SCP; it is on if there is a `certificate`. Files are read again when they change.

    `key`: the key's file, if the certificate's file does not hold it. `port`: a port for TLS besides the plain one;
    without it, TLS takes `scp.port`, and there is no plain port. `client_certificates`: whether peers have to present
    a certificate of an authority in `client_ca_file`.
    """

    port: Port | None = None
    certificate: Path | None = None
    key: Path | None = None
    key_password_file: Path | None = None
    client_ca_file: Path | None = None
    client_certificates: Literal["none", "optional", "required"] = "none"
    minimum_version: Literal["1.2", "1.3"] = "1.2"

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        others = (self.port, self.key, self.key_password_file, self.client_ca_file)
        if self.certificate is None and any(entry is not None for entry in others):
            raise ValueError("TLS needs a certificate: set scp.tls.certificate, or leave out the other settings of TLS")
        if (self.client_certificates == "none") != (self.client_ca_file is None):
            raise ValueError("client_certificates and client_ca_file go together")
        return self

    def files(self) -> tuple[Path, ...]:
        """Return the files that the node reads."""
        named = (self.certificate, self.key, self.key_password_file, self.client_ca_file)
        return tuple(file for file in named if file is not None)


class ScpSettings(Section):
    """The Storage SCP. `also_accept`: SOP classes besides CR, DX and SC that are accepted, to be answered or rejected.

    `networks`: the networks that may connect. `calling_ae_networks`: for an AE title, the only networks from which it
    may call. `maximum_associations_per_peer` counts by address and by calling AE title. `maximum_pending_bytes` bounds
    the memory of all unfinished and unanswered messages together. A message that is slower than `minimum_bytes_per_s`
    after `network_timeout_s` is aborted. `maximum_associations_per_s` and `maximum_objects_per_s` count by address:
    further associations are rejected, apart from a burst of five seconds' worth, and further objects are answered
    later.
    """

    ae_title: AeTitle = "CXRNODE"
    bind: str = "0.0.0.0"
    port: Port = 11112
    require_called_ae: bool = True
    calling_ae_titles: tuple[CallingAeTitle, ...] = ()
    networks: tuple[Network, ...] = ()
    calling_ae_networks: dict[CallingAeTitle, tuple[Network, ...]] = Field(default_factory=dict)
    also_accept: tuple[Uid, ...] = ()
    maximum_associations: int = Field(default=16, ge=1, le=1000)
    maximum_associations_per_peer: int = Field(default=8, ge=1, le=1000)
    maximum_associations_per_s: float = Field(default=100.0, gt=0)
    maximum_objects_per_s: float | None = Field(default=None, ge=1)
    maximum_pdu_bytes: int = Field(default=262_144, ge=4096, le=4_194_304)
    maximum_object_bytes: int = Field(default=536_870_912, ge=1_048_576)
    maximum_pending_bytes: int = Field(default=1_073_741_824, ge=2_097_152)
    minimum_bytes_per_s: int = Field(default=1024, ge=1)
    acse_timeout_s: float = Field(default=10.0, gt=0)
    dimse_timeout_s: float = Field(default=30.0, gt=0)
    network_timeout_s: float = Field(default=60.0, gt=0)

    tls: TlsSettings = TlsSettings()

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.tls.port == self.port:
            raise ValueError("scp.tls.port must differ from scp.port; leave it out to have TLS on scp.port")
        return self

    def ports(self) -> tuple[tuple[int, bool], ...]:
        """Return the ports to listen on, each with whether it is for TLS."""
        if self.tls.certificate is None:
            return ((self.port, False),)
        return ((self.port, True),) if self.tls.port is None else ((self.port, False), (self.tls.port, True))

    @model_validator(mode="after")
    def _holds_the_largest_object(self) -> Self:
        if self.maximum_pending_bytes < 2 * self.maximum_object_bytes:
            raise ValueError("maximum_pending_bytes must be at least twice maximum_object_bytes")
        return self


class StoreSettings(Section):
    """The folder of the store, and how much disk it leaves free."""

    path: Path = Path("var/store")
    minimum_free_bytes: int = Field(default=1_073_741_824, ge=0)


class AssemblySettings(Section):
    """When a study is complete: `quiet_s` after the release of its association.

    At the latest it is complete `maximum_wait_s` after its first image.
    """

    quiet_s: float = Field(default=2.0, ge=0)
    maximum_wait_s: float = Field(default=300.0, gt=0)


class RetentionSettings(Section):
    """How many days the files of a study stay after it is settled; 0: none, inf: for ever. See `store.retention`.

    `audit_wait_days`: how much longer they stay while audit messages about the study could not be sent.
    """

    images_days: float = Field(default=7.0, ge=0, allow_inf_nan=True)
    results_days: float = Field(default=30.0, ge=0, allow_inf_nan=True)
    audit_wait_days: float = Field(default=7.0, ge=0, allow_inf_nan=True)


class EligibilitySettings(Section):
    """Conditions on the attributes of an image. Ages are in years; an absent bound is not applied."""

    modalities: tuple[str, ...] = ("CR", "DX")
    minimum_side: int = Field(default=200, ge=1)
    minimum_age_years: float | None = Field(default=None, ge=0)
    maximum_age_years: float | None = Field(default=None, ge=0)
    reject_missing_age: bool = False


class PixelSettings(Section):
    """Limits and rendering of pixel data; the percentiles define the fallback window (see `imaging.pixels`)."""

    maximum_pixels: int = Field(default=80_000_000, ge=10_000)
    low_percentile: float = Field(default=0.5, ge=0, lt=50)
    high_percentile: float = Field(default=99.5, gt=50, le=100)


class InferenceSettings(Section):
    """The model bundle (None: the shipped one), ONNX Runtime's threads (0: one for each core), operating point.

    `providers`: ONNX Runtime's execution providers, by preference. An operator that the first one lacks runs on the
    next one, at last on the CPU.
    """

    bundle: Path | None = None
    threads: int = Field(default=0, ge=0, le=256)
    providers: tuple[Literal["cpu", "cuda", "openvino"], ...] = Field(default=("cpu",), min_length=1)
    operating_point: str | None = None


def _code_text(value: str) -> str:
    from_text(value)
    return value


CodeText = Annotated[str, AfterValidator(_code_text)]
"""A code as `value^meaning^scheme`."""


Word = Annotated[str, Field(min_length=1, max_length=20, pattern=r"^[ -~]+$")]
"""A word that pictures show: ASCII, as their fonts are."""


class ResultSettings(Section):
    """Attributes of the results. `report_rejected`: send a report "not analysed" for a rejected study.

    Codes are written as `value^meaning^scheme`. `procedure_reported`: the report's Procedure Reported.
    `equipment_purpose`: the model's purpose in the Contributing Equipment Sequence. `word_above`, `word_below`,
    `word_undetermined`: the words that people read for a probability at its threshold; codes do not change.
    """

    manufacturer: str = Field(default="cxrnode", min_length=1, max_length=64)
    institution: str = Field(default="", max_length=64)
    station_name: str = Field(default="CXRNODE", max_length=16)
    device_serial_number: str = Field(default="0", min_length=1, max_length=64)
    mark: str = Field(default="Research use only - not for diagnosis", max_length=48)
    word_above: Word = "above threshold"
    word_below: Word = "below threshold"
    word_undetermined: Word = "undetermined"
    series_number_sr: int = Field(default=9901, ge=1)
    series_number_sc: int = Field(default=9902, ge=1)
    series_number_sc_finding: int = Field(default=9903, ge=1)
    series_number_gsps: int = Field(default=9904, ge=1)
    series_number_pm: int = Field(default=9905, ge=1)
    series_number_pdf: int = Field(default=9906, ge=1)
    maximum_side: int = Field(default=1280, ge=512, le=8192)
    procedure_reported: CodeText = as_text(IMAGING_PROCEDURE.code)
    equipment_purpose: CodeText = as_text(PROCESSING_EQUIPMENT.code)
    report_rejected: bool = False


class WorkSettings(Section):
    """How often an analysis is tried that fails for a transient reason, before the study is a dead letter."""

    maximum_attempts: int = Field(default=5, ge=1)
    retry_delay_s: float = Field(default=10.0, ge=0)


class AuditSettings(Section):
    """The receiver of audit messages (PS3.15 A.5): none, a file, or a syslog receiver over TLS or UDP.

    `ca_file` replaces the system's authorities. `source_id`: the node's name in messages; "" means its AE title.
    """

    to: Literal["off", "file", "tls", "udp"] = "off"
    file: Path | None = None
    host: str = ""
    port: Port = 6514
    ca_file: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    source_id: str = Field(default="", max_length=64, pattern=r"^[ -~]*$")
    enterprise_site_id: str = Field(default="", max_length=64, pattern=r"^[ -~]*$")

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if (self.to == "file") != (self.file is not None):
            raise ValueError('audit.file goes with to = "file", and with no other')
        if (self.to in ("tls", "udp")) != bool(self.host):
            raise ValueError('audit.host goes with to = "tls" or "udp", and with no other')
        if self.to != "tls" and (self.ca_file or self.client_certificate):
            raise ValueError('ca_file and client_certificate need to = "tls"')
        if self.client_key is not None and self.client_certificate is None:
            raise ValueError("client_key needs client_certificate")
        return self


class LogSettings(Section):
    """The log. `json`: one object on each line; `text`: for people; `auto`: text on a terminal, else JSON."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["auto", "json", "text"] = "auto"


class Settings(BaseSettings):
    """The whole configuration, one section per part of the node."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter=NESTED,
        frozen=True,
        extra="forbid",
    )

    scp: ScpSettings = ScpSettings()
    store: StoreSettings = StoreSettings()
    assembly: AssemblySettings = AssemblySettings()
    retention: RetentionSettings = RetentionSettings()
    eligibility: EligibilitySettings = EligibilitySettings()
    pixels: PixelSettings = PixelSettings()
    inference: InferenceSettings = InferenceSettings()
    work: WorkSettings = WorkSettings()
    results: ResultSettings = ResultSettings()
    delivery: DeliverySettings = DeliverySettings()
    http: HttpSettings = HttpSettings()
    audit: AuditSettings = AuditSettings()
    log: LogSettings = LogSettings()


def read_settings(file: Path | None, options: dict[str, Any]) -> Settings:
    """Read the configuration from options, environment, file and defaults, in this order of precedence.

    `options` is nested like the file. Raises: ConfigurationError, which names each wrong setting and what set it.
    """
    if file is not None and not file.is_file():
        raise ConfigurationError(f"there is no configuration file {file}; `cxrnode init {file}` writes one")
    if unknown := unknown_variables(Settings):
        raise ConfigurationError("the configuration is wrong:\n  " + "\n  ".join(unknown))
    try:
        return _from(file)(**options)
    except ValidationError as error:
        raise ConfigurationError(explain(error, Settings, file, options)) from error
    except SettingsError as error:
        raise ConfigurationError(explain_json(str(error))) from error
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}; who runs cxrnode needs to") from error
    except ValueError as error:
        raise ConfigurationError(f"the configuration cannot be read, for {file} is no TOML: {error}") from error


def _from(file: Path | None) -> type[Settings]:
    """Return settings that read this file below options and environment."""

    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 the signature is pydantic-settings'
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            if file is None:
                return init_settings, env_settings
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=file)

    return FromFile


def parse_destination(text: str, **more: Any) -> DimseDestination:
    """Read `AET@HOST:PORT`; `more` are other settings of the destination.

    Raises: ConfigurationError.
    """
    match = _DESTINATION.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"{text!r} is not of the form AET@HOST:PORT, such as PACS@pacs.example.org:104")
    try:
        return DimseDestination(ae_title=match["ae"], host=match["host"].strip("[]"), port=int(match["port"]), **more)
    except ValidationError as error:
        raise ConfigurationError(explain(error, DimseDestination, None, {})) from error


def parse_http(text: str) -> dict[str, Any]:
    """Read the value of --http, which is `HOST:PORT`, `PORT` or `off`, into settings of `[http]`.

    Raises: ConfigurationError.
    """
    if text == "off":
        return {"enabled": False}
    match = _HTTP_ADDRESS.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"{text!r} is neither HOST:PORT nor off")
    address: dict[str, Any] = {"enabled": True, "port": int(match["port"])}
    return address | ({"bind": match["host"].strip("[]")} if match["host"] else {})


def default_bundle() -> Path:
    """Return the folder of the shipped reference bundle: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "models" / "reference"
    return inside if inside.is_dir() else package.parent / "models" / "reference"
