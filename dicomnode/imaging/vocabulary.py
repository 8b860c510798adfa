"""The words and codes by which objects name a view or a body part, in the languages met in the wild.

Text is compared in capitals, without accents, with `_` as a space; a word ends where letters end, so that `PLAT` and
`BILATERAL` hold no `LAT`, and `2PA` holds `PA`. Cyrillic, Chinese, Japanese and Korean stems stand anywhere.
"""

import re
import unicodedata
from enum import StrEnum


class View(StrEnum):
    """The direction of a projection, as far as the model cares. `FRONTAL` is PA or AP, not said which."""

    PA = "PA"
    AP = "AP"
    FRONTAL = "frontal"
    LATERAL = "lateral"
    DECUBITUS = "lateral decubitus"
    OBLIQUE = "oblique"
    SPECIAL = "special"


class Part(StrEnum):
    """A body part; all but the chest are wrong. The values are words for the node's own sentences."""

    CHEST = "the chest"
    SPINE = "the spine"
    RIBS = "the ribs or the sternum"
    BREAST = "the breast"
    DENTAL = "teeth or jaw"
    HEAD = "the head or neck"
    ABDOMEN = "the abdomen"
    PELVIS = "the pelvis or hip"
    UPPER_LIMB = "the shoulder, arm or hand"
    LOWER_LIMB = "the leg or foot"
    EXTREMITY = "an extremity"
    WHOLE_BODY = "the whole body"
    PHANTOM = "a test object"


FRONTAL_VIEWS = frozenset({View.PA, View.AP, View.FRONTAL})


def _words(alternatives: str, *, anywhere: str = "") -> re.Pattern[str]:
    """Return the pattern of any of the space-separated expressions as a whole word, or of `anywhere` anywhere."""
    bounded = rf"(?<![^\W\d_])(?:{'|'.join(alternatives.split())})(?![^\W\d_])"
    return re.compile(f"{bounded}|{anywhere}" if anywhere else bounded)


# In this order; what one pattern matched is taken out before the next one looks.
_VIEW_WORDS: tuple[tuple[View | None, re.Pattern[str]], ...] = (
    # Romance languages call lying on one's back or belly a decubitus: that is no lateral decubitus.
    (
        None,
        _words(
            r"""
            DECUB\w*\W*(?:DORSA|VENTRA|SUPIN|PRON)\w* (?:DORSAL|VENTRAL|SUPINE|PRONE)\W*DECUB\w*
            """,
        ),
    ),
    (
        View.DECUBITUS,
        _words(
            r"""
            (?:(?:LEFT|RIGHT|LT|RT|L|R)\W*)?(?:LAT(?:ERAL)?\W*)?DECUB\w*(?:\W*LAT\w*)? [LR]LD
            (?:LINKS|RECHTS)?SEITENLAGE\w*
            """,
        ),
    ),
    (View.SPECIAL, _words(r"LORDOT\w* LORDOS\w* (?:[AP]P?\W*)?AXIAL\w* TANGENT\w* SWIMMER\w*")),
    (
        View.OBLIQUE,
        _words(r"OBL\w* [LR][AP]O [LR]LO SCHRAG\w* SKOS\w* SIKM\w*", anywhere="КОС[АЫ]|斜位"),
    ),
    (
        View.LATERAL,
        _words(
            r"""
            (?:[LR]T?)?LATS? (?:[LR]|LEFT|RIGHT)?LATERAL(?!IT)\w* LATERO(?:\W?LATERAL\w*)? L[-./\s]?L LAT\W?LAT
            [LR]L [LR]\s*-?>\s*[LR] SEITL\w* PROFILO? PROFILE PERFIL SIDEBILDE?\w* SIDOBILD\w* ZIJDELINGS\w*
            ZIJWAARTS\w* DWARS\w* BO[CK]N\w* BOCZN\w* OLDALIR\w* SIVU\w* YAN
            """,
            anywhere="БОКОВ|侧位|側位|側面|측면",
        ),
    ),
    (
        View.PA,
        _words(
            r"""
            P[^\w\s]{0,3}A POSTERO\W?ANT\w* POST\w*\W{1,2}ANT\w* DORSO\W?VENTRAL\w* ZADO\W?PR?EDN\w*
            TYLNO\W?PRZEDN\w* ACHTER\W?VOORW\w*
            """,
            anywhere="ЗАДНЕ.?ПЕРЕД|后前|後前",
        ),
    ),
    (
        View.AP,
        _words(
            r"""
            A[^\w\s]{0,3}P ANTERO\W?POST\w* ANT\w*\W{1,2}POST\w* VENTRO\W?DORSAL\w* PREDO\W?ZADN\w*
            PRZEDNIO\W?TYLN\w* VOOR\W?ACHTERW\w*
            """,
            anywhere="ПЕРЕДНЕ.?ЗАДН|前后|前後",
        ),
    ),
    (
        View.FRONTAL,
        _words(r"FRN FRONT\w* FRENTE FACE ON\W?ARKA", anywhere="ПРЯМ[АО]|正位|正面|정면"),
    ),
)

_PART_WORDS: tuple[tuple[Part, re.Pattern[str]], ...] = (
    (
        Part.SPINE,
        _words(
            r"""
            (?:THORA|TORA|DORS|BRUST|CERVIC|LUMB|LOMB)\w*\W*(?:SPINE|SPINAL|VERTEBR\w*|WIRBEL\w*|WERVEL\w*|COLUMN\w*)
            (?:COLONNA|COLUMNA|COLUNA|RACHIS|KREGOSLUP\w*)(?:\W*(?:THORA|TORA|DORS|PIERS|CERVIC|LUMB|LOMB)\w*)?
            [CTL]{0,2}\W?SPINE SPINAL
            (?:THORACO|TORACO|DORSO|CERVICO|LUMBO|LOMBO)\W?(?:LUMB|LOMB|DORS|SACR|THORA|TORA)\w* \w*WIRBEL\w*
            \w*WERVEL\w* [HBL]WS VERTEBR\w* SACR(?:UM|O|AL) COCCYX SCOLIO\w*
            """,
        ),
    ),
    (
        Part.RIBS,
        _words(
            r"""
            (?:HEMI\W?)?THORAX\W*(?:BONES?|OSSEUX|OSEO) RIBS?(?:\W?CAGE)? COST[AEO]S? COSTOLE COSTIL+AS RIPPEN
            COTES ZEBRA STERN(?:UM|O|AL) STERNOCLAV\w*
            """,
        ),
    ),
    (
        Part.CHEST,
        _words(
            r"""
            CXR THX \w*THORA[CXKL]\w* \w*TORA[CXKSLZ]\w* BRUSTKORB LUNGS? LUNGE\w* POUMONS? POLMON\w* PULM\w*
            PLUC\w* PLIC\w* KLATK\w* HRUDN\w* MELLKAS\w* BORSTKAS KEUHKO\w* RINTAKEH\w* AKCIGER\w* GOGUS HEART
            CARDIAC CUORE HERZ COEUR CORAZON MEDIASTIN\w*
            """,
            anywhere="CHEST|ГРУДН|ОГК|ЛЕГК|ЛЁГК|ФЛЮОРО|胸|肺|흉부",
        ),
    ),
    (
        Part.PHANTOM,
        _words(r"PHANTOM\w* FANTOM\w* TEST\W?PATTERN FLAT\W?FIELD QC QUALITY\W?CONTROL"),
    ),
    (Part.WHOLE_BODY, _words(r"WHOLE\W?BODY ENTIRE\W?BODY SKELET\w* BABYGRAM\w* BONE\W?AGE")),
    (Part.BREAST, _words(r"BREASTS? MAMM\w* MAMAS? SENO AXILLA")),
    (
        Part.DENTAL,
        _words(
            r"""
            TOOTH TEETH DENT(?:AL\w*|I|ES?|ITION)? \w*ZAHN\w* JAWS? MANDIB\w* MAXILL?\w* \w*KIEFER\w* OPG OPT
            ORTHOPANT\w* ORTOPANT\w* PANOR\w* CEPHALO\w*
            """,
            anywhere="ЗУБ|牙|歯",
        ),
    ),
    (
        Part.HEAD,
        _words(
            r"""
            SKULL CRANI\w* SCHADEL HEAD\w* KOPF TESTA CABEZA BRAIN FACIAL\w* SINUS\w* NASAL NOSE ORBITS?
            ZYGOMA\w* TMJ NECK\w* HALS COLLO CUELLO LARYNX
            """,
            anywhere="ЧЕРЕП|头|頭|두부",
        ),
    ),
    (
        Part.ABDOMEN,
        _words(
            r"""
            ABD ABDO(?:M\w*)? ADDOM\w* BAUCH VENTRE KUB BUIK BRZUCH\w* STOMACH COLON KIDNEYS? BLADDER
            """,
            anywhere="БРЮШН|ЖИВОТ|腹|복부",
        ),
    ),
    (
        Part.PELVIS,
        _words(
            r"""
            PELV\w* BACINO BECKEN\w* BASSIN BEKKEN HIPS? HUFTE\w* ANC[AH]\w* HANCHE\w* CADERAS? QUADRIL
            """,
            anywhere="ТАЗ|骨盆|骨盤|골반",
        ),
    ),
    (
        Part.UPPER_LIMB,
        _words(
            r"""
            (?:UPPER\W?|FORE)?ARMS? UPPER\W?(?:LIMB|EXTREMIT\w*) HANDS? HANDGELENK\w* MANOS? FINGERS? DITO
            DEDOS? THUMBS? WRISTS? POLSO POIGNET\w* MUNECAS? ELBOWS? GOMITO ELLENBOGEN COUDE CODO HUMERUS OMERO
            RADIUS ULNA SHOULDERS? SPALLA SCHULTER\w* EPAULE\w* HOMBROS? OMBRO CLAVI\w* SCAPULA\w* AC\W?JOINTS?
            ACROMIO\w*
            """,
            anywhere="КИСТ|手|손목",
        ),
    ),
    (
        Part.LOWER_LIMB,
        _words(
            r"""
            (?:LOWER\W?)?LEGS? LOWER\W?(?:LIMB|EXTREMIT\w*) GAMBA BEIN JAMBE PIERNAS? \w*SCHENKEL KNEES?
            GINOCCHI\w* KNIE GENOUX? RODILLAS? JOELHOS? ANKLES? CAVIGLI\w* \w*SPRUNGGELENK\w* CHEVILLES?
            TOBILLOS? TORNOZELOS? FOOT FEET PIED[EI]? FUSS TOES? HEEL CALCAN\w* FEMUR FEMORE THIGH TIBIA\w*
            FIBULA PATELLA\w*
            """,
            anywhere="КОЛЕН|СТОП|膝|足|무릎",
        ),
    ),
    (Part.EXTREMITY, _words(r"EXTREMIT\w* LIMBS?")),
)

FORMER_SCHEMES = {"SNM3": "SRT", "99SDM": "SRT", "SNOMED": "SCT"}
"""Designators that devices still write for SNOMED, and the one that they mean. Source: PS3.16 8.1."""

VIEW_CODES: dict[tuple[str, str], View] = {
    ("SCT", value): view
    for view, listed in (
        (View.PA, "272479007"),
        (View.AP, "399348003"),
        (View.FRONTAL, "399033003"),
        (View.LATERAL, "399067008 399173006 399198007 399352003 399260004"),
        (
            View.OBLIQUE,
            "399182000 399184004 399236003 399135007 399356000 399006002 399038007 399312000 399059000 399160007",
        ),
        (View.SPECIAL, "399061009 399004004 399110001 399162004 399196006 399225005 399288005"),
    )
    for value in listed.split()
} | {
    ("SRT", value): view
    for view, listed in (
        (View.PA, "R-10214 R-40888"),
        (View.AP, "R-10206"),
        (View.FRONTAL, "R-10202"),
        (View.LATERAL, "R-102CD R-10236 R-10232 R-10228 R-10224"),
        (View.OBLIQUE, "R-102C1 R-10238 R-10234 R-10220 R-40985 R-10212 R-10210 R-10208 R-10216 R-10204"),
        (View.SPECIAL, "R-10241 R-10246 R-102C2 R-10242 R-10244 R-10250"),
    )
    for value in listed.split()
}
"""Codes of views by scheme and value. Source: PS3.16 CID 4010, with the SRT codes that older devices write."""

PART_CODES: dict[tuple[str, str], Part] = {
    ("SCT", value): part
    for part, listed in (
        (Part.CHEST, "51185008 816094009 39607008 86598002 43799004 80891009 72410000 44567001 955009"),
        (Part.SPINE, "421060004 122494005 122495006 122496007 1217253001 1217256009 1217257000 54735007 64688005"),
        (Part.RIBS, "113197003 56873002 7844006"),
        (Part.BREAST, "76752008"),
        (Part.DENTAL, "661005 91609006 70925003"),
        (Part.HEAD, "69536005 89546000 91397008 2095001 74386004 45048000 774007 53620006 13881006"),
        (Part.ABDOMEN, "818981001 113345001 818982008"),
        (Part.PELVIS, "816092008 12921003 29836001 24136001 39723000"),
        (Part.UPPER_LIMB, "53120007 85562004 7569003 76505004 74670003 14975008 16953009 40983000 85050009 16982005"),
        (Part.UPPER_LIMB, "51299004 79601000 85856004"),
        (Part.LOWER_LIMB, "61685007 56459004 29707007 80144004 70258002 30021000 72696002 68367000 71341001 64234005"),
        (Part.EXTREMITY, "66019005"),
        (Part.WHOLE_BODY, "38266002"),
        (Part.PHANTOM, "706342009"),
    )
    for value in listed.split()
} | {("SRT", value): Part.CHEST for value in ("T-D3000", "T-28000", "T-D3200", "T-32000")}
"""Codes of body parts by scheme and value. Source: PS3.16 CID 4031. Other codes are read by their meaning."""


def normalise(text: str) -> str:
    """Return the text in capitals, without accents, `_` and runs of white space as one space."""
    decomposed = unicodedata.normalize("NFKD", text.upper())
    bare = "".join(c for c in decomposed if not unicodedata.combining(c) or c == "\u3099")
    return " ".join(unicodedata.normalize("NFC", bare).replace("_", " ").split())


def views_in(text: str) -> frozenset[View]:
    """Return the views that a text names."""
    rest, found = normalise(text), set()
    for view, pattern in _VIEW_WORDS:
        rest, count = pattern.subn(" . ", rest)
        if count and view is not None:
            found.add(view)
    return frozenset(found)


def parts_in(text: str) -> frozenset[Part]:
    """Return the body parts that a text names."""
    rest, found = normalise(text), set()
    for part, pattern in _PART_WORDS:
        rest, count = pattern.subn(" . ", rest)
        if count:
            found.add(part)
    return frozenset(found)


def view_of(text: str) -> View | None:
    """Return the one view that a text is about, or None when it names none or leaves it open.

    `PA/LAT` is open; `AP OBLIQUE` is oblique; `AP`, `PA` together are frontal.
    """
    found = views_in(text)
    for special in (View.DECUBITUS, View.SPECIAL, View.OBLIQUE):
        if special in found and View.LATERAL not in found:
            return special
    frontal = found & FRONTAL_VIEWS
    if frontal and found - frontal:
        return None
    directed = frontal - {View.FRONTAL}
    if frontal:
        return next(iter(directed)) if len(directed) == 1 else View.FRONTAL
    return next(iter(found)) if len(found) == 1 else None


def part_of(text: str) -> Part | None:
    """Return the one body part that a text is about; the chest together with another part is left open."""
    found = parts_in(text)
    if Part.CHEST in found and len(found) > 1:
        return None
    return min(found, default=None)
