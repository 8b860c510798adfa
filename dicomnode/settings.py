"""The node's configuration: read once, checked whole, frozen; every part receives only its own section.

Order of precedence: command line options, then `CXRNODE_…` environment variables (`CXRNODE_SCP__PORT=11113`), then the
TOML file, then the defaults here.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.identifiers import is_valid_uid
from dicomnode.domain.job import Destination, RetryPolicy

_DESTINATION = re.compile(r"(?P<ae>[^@]+)@(?P<host>\[[^\]]+\]|[^@:]+):(?P<port>[0-9]{1,5})")


def _ae_title(value: str) -> str:
    """Check an AE title: 1 to 16 printable characters without backslash. Source: PS3.5 6.2."""
    title = value.strip(" ")
    if not 1 <= len(title) <= 16 or "\\" in title or not all(32 <= ord(c) < 127 for c in title):
        raise ValueError("an AE title has 1 to 16 printable ASCII characters and no backslash")
    return title


def _uid(value: str) -> str:
    if not is_valid_uid(value):
        raise ValueError(f"{value!r} is not a DICOM UID")
    return value


AeTitle = Annotated[str, AfterValidator(_ae_title)]
Uid = Annotated[str, AfterValidator(_uid)]
Port = Annotated[int, Field(ge=1, le=65535)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ScpSettings(_Section):
    """The Storage SCP. `also_accept`: SOP classes beyond CR, DX and SC whose studies get an answer too."""

    ae_title: AeTitle = "CXRNODE"
    bind: str = "0.0.0.0"
    port: Port = 11112
    require_called_ae: bool = True
    calling_ae_titles: tuple[AeTitle, ...] = ()
    also_accept: tuple[Uid, ...] = ()
    maximum_associations: int = Field(default=16, ge=1, le=1000)
    maximum_pdu_bytes: int = Field(default=262_144, ge=4096, le=4_194_304)
    maximum_object_bytes: int = Field(default=536_870_912, ge=1_048_576)
    acse_timeout_s: float = Field(default=10.0, gt=0)
    dimse_timeout_s: float = Field(default=30.0, gt=0)
    network_timeout_s: float = Field(default=60.0, gt=0)


class StoreSettings(_Section):
    """Where bytes and states are kept, and how much free disk is never touched."""

    path: Path = Path("var/store")
    minimum_free_bytes: int = Field(default=1_073_741_824, ge=0)


class AssemblySettings(_Section):
    """When a study is complete: its association released and `quiet_s` passed, or `maximum_wait_s` at the latest."""

    quiet_s: float = Field(default=2.0, ge=0)
    maximum_wait_s: float = Field(default=300.0, gt=0)


class EligibilitySettings(_Section):
    """What the tags must say. Ages are in years; a bound that is absent is not applied."""

    modalities: tuple[str, ...] = ("CR", "DX")
    minimum_side: int = Field(default=200, ge=1)
    minimum_age_years: float | None = Field(default=None, ge=0)
    maximum_age_years: float | None = Field(default=None, ge=0)
    reject_missing_age: bool = False


class PixelSettings(_Section):
    """Limits and rendering of pixel data; percentiles are of the fallback window (see `imaging.pixels`)."""

    maximum_pixels: int = Field(default=80_000_000, ge=10_000)
    low_percentile: float = Field(default=0.5, ge=0, lt=50)
    high_percentile: float = Field(default=99.5, gt=50, le=100)


class InferenceSettings(_Section):
    """The model bundle (None: the shipped reference), ONNX Runtime threads (0: one per core), operating point."""

    bundle: Path | None = None
    threads: int = Field(default=0, ge=0, le=256)
    operating_point: str | None = None


class ResultSettings(_Section):
    """What results say of the node. `report_rejected`: answer a rejected study with a "not analysed" report."""

    manufacturer: str = Field(default="cxrnode", min_length=1, max_length=64)
    institution: str = Field(default="", max_length=64)
    station_name: str = Field(default="CXRNODE", max_length=16)
    device_serial_number: str = Field(default="0", min_length=1, max_length=64)
    mark: str = Field(default="Research use only - not for diagnosis", max_length=48)
    series_number_sr: int = Field(default=9901, ge=1)
    series_number_sc: int = Field(default=9902, ge=1)
    maximum_side: int = Field(default=2048, ge=512, le=8192)
    report_rejected: bool = False


class RetrySettings(_Section):
    """Delays between attempts at a delivery."""

    first_delay_s: float = Field(default=30.0, gt=0)
    factor: float = Field(default=2.0, ge=1)
    max_delay_s: float = Field(default=600.0, gt=0)
    give_up_after_s: float = Field(default=604_800.0, gt=0)

    def policy(self) -> RetryPolicy:
        """Return the retry policy these settings describe."""
        return RetryPolicy(**self.model_dump())


class DestinationSettings(_Section):
    """A Storage SCP that receives the results."""

    ae_title: AeTitle
    host: str = Field(min_length=1)
    port: Port
    name: str = ""

    def destination(self) -> Destination:
        """Return the destination; without a name of its own it is called `AET@HOST:PORT`."""
        name = self.name or f"{self.ae_title}@{self.host}:{self.port}"
        return Destination(name=name, ae_title=self.ae_title, host=self.host, port=self.port)


class DeliverySettings(_Section):
    """Where results go and how the node insists."""

    destinations: tuple[DestinationSettings, ...] = ()
    retry: RetrySettings = RetrySettings()
    connect_timeout_s: float = Field(default=10.0, gt=0)
    response_timeout_s: float = Field(default=60.0, gt=0)
    batch: int = Field(default=50, ge=1, le=1000)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [entry.destination().name for entry in self.destinations]
        if len(set(names)) != len(names):
            raise ValueError("two destinations have the same name")
        return self


class WorkSettings(_Section):
    """How often a study whose analysis failed for a passing reason is tried again before it is a dead letter."""

    maximum_attempts: int = Field(default=5, ge=1)
    retry_delay_s: float = Field(default=10.0, ge=0)


class LogSettings(_Section):
    """`json`: one object a line; `text`: for people; `auto`: text on a terminal, else JSON. Never patient data."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["auto", "json", "text"] = "auto"


class Settings(BaseSettings):
    """The whole configuration, one section per part of the node."""

    model_config = SettingsConfigDict(
        env_prefix="CXRNODE_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
    )

    scp: ScpSettings = ScpSettings()
    store: StoreSettings = StoreSettings()
    assembly: AssemblySettings = AssemblySettings()
    eligibility: EligibilitySettings = EligibilitySettings()
    pixels: PixelSettings = PixelSettings()
    inference: InferenceSettings = InferenceSettings()
    work: WorkSettings = WorkSettings()
    results: ResultSettings = ResultSettings()
    delivery: DeliverySettings = DeliverySettings()
    log: LogSettings = LogSettings()


def read_settings(file: Path | None, options: dict[str, Any]) -> Settings:
    """Read the configuration from options, environment, file and defaults, in this order of precedence.

    `options` is nested like the file. Raises: ConfigurationError, naming each wrong field.
    """
    if file is not None and not file.is_file():
        raise ConfigurationError(f"there is no configuration file {file}")

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

    try:
        return FromFile(**options)
    except ValidationError as error:
        raise ConfigurationError(_explain(error, file)) from error
    except ValueError as error:  # malformed TOML, or JSON in an environment variable
        raise ConfigurationError(f"the configuration cannot be read: {error}") from error


def parse_destination(text: str) -> DestinationSettings:
    """Read `AET@HOST:PORT`.

    Raises: ConfigurationError.
    """
    match = _DESTINATION.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"{text!r} is not of the form AET@HOST:PORT")
    try:
        return DestinationSettings(ae_title=match["ae"], host=match["host"].strip("[]"), port=int(match["port"]))
    except ValidationError as error:
        raise ConfigurationError(_explain(error, None)) from error


def default_bundle() -> Path:
    """Return the folder of the shipped reference bundle: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "models" / "reference"
    return inside if inside.is_dir() else package.parent / "models" / "reference"


def _explain(error: ValidationError, file: Path | None) -> str:
    where = f" (file {file})" if file else ""
    lines = [
        f"{'.'.join(str(part) for part in entry['loc']) or 'configuration'}: {entry['msg']}"
        for entry in error.errors(include_url=False, include_input=False)
    ]
    return f"the configuration is wrong{where}:\n  " + "\n  ".join(lines)
