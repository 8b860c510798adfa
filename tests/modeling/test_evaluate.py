"""`cxrnode evaluate` from files to report, on a tiny bundle and drawn chests of every file kind."""

import csv
import json
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from dicomnode.bundle.reader import file_sha256, open_bundle
from dicomnode.cli.main import app
from dicomnode.cli.pictures import frame_of
from dicomnode.domain.errors import CxrNodeError, UndecodablePixels
from dicomnode.domain.finding import SaliencyMap
from dicomnode.domain.terminology import NIH_TERMS
from dicomnode.inference.predictor import Predictor
from dicomnode.settings.node import PixelSettings
from modeling.card_evaluations import evaluation_sections, read_evaluation
from modeling.evaluation.pointing import compare_with_boxes, localisation, read_boxes
from modeling.evaluation.predictions import read_predictions
from modeling.evaluation.reading import select
from modeling.files import open_files
from modeling.preparation.tables import image_key, read_table
from modeling.training_images import TRAINING_IMAGES, write_training_images
from tests.support.bundles import MEMBERS, make_bundle
from tests.support.decoding import CODECS
from tests.support.make import build, chest, stored, write

IMAGES = 83
"""Not a multiple of the batch."""
HEADER = "image,px,source,labels,view,patient,age,sex"


def save(folder: Path, index: int) -> None:
    pixels = chest(96, 90, seed=index)
    # The tiny model's Infiltration follows the brightness of the blocks, so brighter images score otherwise.
    grey = np.round(np.clip(pixels * (0.6 + 0.4 * (index % 2)), 0, 1) * 255).astype(np.uint8)
    if index % 10 == 0:
        write(build("cr", pixels=stored(chest(300, 280, seed=index))), folder / f"{index:08d}_000.dcm")
    else:
        cv2.imwrite(str(folder / f"{index:08d}_000.{'jpg' if index % 3 else 'png'}"), grey)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of `images`, `labels.csv`, a tiny `bundle`, and a `list.txt` of all images."""
    root = tmp_path_factory.mktemp("data")
    (root / "images" / "deep").mkdir(parents=True)
    rows = [HEADER]
    for index in range(IMAGES):
        save(root / "images" / ("deep" if index % 2 else ""), index)
        findings = "Infiltration|Mass" if index % 2 else "No Finding"
        view, sex = ("PA", "AP", "")[index % 3], "MF"[index // 2 % 2]
        rows.append(f"{index:08d}_000.png,96,drawn,{findings},{view},{index // 2},{20 + index % 60},{sex}")
    (root / "labels.csv").write_text("\n".join(rows))
    make_bundle(root / "bundle")
    return root


def run(data: Path, out: Path, *options: str, images: Path | None = None, labels: Path | None = None) -> Result:
    arguments = ["evaluate", "--bundle", str(data / "bundle"), "--images", str(images or data / "images")]
    arguments += ["--labels", str(labels or data / "labels.csv"), "--out", str(out), "--bootstrap", "100"]
    return CliRunner().invoke(app, [*arguments, *options])


@pytest.fixture(scope="module")
def evaluated(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated")
    result = run(data, out)
    assert result.exit_code == 0, result.output
    return out


def test_every_image_has_a_row_also_in_the_last_partial_batch(evaluated: Path) -> None:
    predictions = read_predictions(evaluated)
    assert predictions.images.tolist() == [f"{index:08d}_000.png" for index in range(IMAGES)]
    assert predictions.patients[:3].tolist() == ["0", "0", "1"]
    assert predictions.members.shape == (IMAGES, MEMBERS, 15)


def test_probabilities_are_those_the_node_gives_whatever_the_file_kind(data: Path, evaluated: Path) -> None:
    predictions = read_predictions(evaluated)
    predictor = Predictor(open_bundle(data / "bundle"), threads=1)
    for index, name in ((0, "00000000_000.dcm"), (1, "deep/00000001_000.jpg"), (82, "00000082_000.jpg")):
        scores = predictor.read(frame_of((data / "images" / name).read_bytes(), PixelSettings(), CODECS)).scores
        assert predictions.probability[index] == pytest.approx([score.probability for score in scores], abs=1e-5)
        members = np.array([score.member_probabilities for score in scores])
        assert np.allclose(predictions.members[index].T, members, atol=1e-5)


def test_the_metrics_hold_everything_and_are_plain_json(evaluated: Path) -> None:
    metrics = json.loads((evaluated / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert (metrics["images"], metrics["patients"]) == (IMAGES, 42)
    assert metrics["input"]["problems"] == {}
    label = metrics["labels"]["Infiltration"]
    assert label["positives"] == 41
    assert label["auc"]["low"] <= label["auc"]["value"] <= label["auc"]["high"]
    assert len(label["members"]["aucs"]) == MEMBERS
    for measure in ("auprc", "view_only_auc", "brier", "ece"):
        assert label[measure]["low"] <= label[measure]["high"]
    assert set(label["operating_points"]) == {"youden", "sensitivity_95", "first_system_0.5"}
    assert set(label["operating_points"]["youden"]["rates"]) == {"sensitivity", "specificity", "ppv", "npv", "f1"}
    assert set(metrics["averages"]["youden"]) == {"micro", "macro", "weighted", "samples"}
    assert [row["threshold"] for row in metrics["threshold_sweep"]] == [round(0.4 + 0.01 * at, 2) for at in range(30)]
    assert set(metrics["subgroups"]) == {"sex", "age", "view", "source"}
    assert metrics["subgroups"]["view"]["unknown"] == 27
    assert metrics["mean_of_findings"]["labels"] == ["Infiltration", "Mass"]


def test_too_few_positives_give_no_auc(evaluated: Path) -> None:
    metrics = json.loads((evaluated / "metrics.json").read_text())
    assert metrics["labels"]["Hernia"]["auc"] is None
    assert metrics["labels"]["Hernia"]["members"] is None


def test_the_report_holds_its_pictures_and_names_every_label(evaluated: Path) -> None:
    text = (evaluated / "report.html").read_text()
    assert text.count("data:image/png;base64,") == 6
    assert all(name.replace("_", " ") in text for name in NIH_TERMS)
    assert "nan" not in text.lower().replace("base64", "").split("<img")[0]
    for name in ("roc", "precision-recall", "reliability", "label-counts", "scores", "auc"):
        picture = cv2.imread(str(evaluated / "plots" / f"{name}.png"))
        assert picture is not None
        assert picture.std() > 5


def test_the_same_input_gives_the_same_measures_from_an_archive(data: Path, evaluated: Path, tmp_path: Path) -> None:
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (data / "images").rglob("*.*"):
            file.write(path, path.relative_to(data))
        file.writestr("__MACOSX/._00000000_000.png", b"resource fork")
    assert run(data, tmp_path / "out", images=archive).exit_code == 0
    for name in ("predictions.csv", "skipped.csv"):
        assert (tmp_path / "out" / name).read_text() == (evaluated / name).read_text()
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (evaluated, tmp_path / "out"))
    assert {**first, "evaluated_at": ""} == {**second, "evaluated_at": ""}


def test_what_is_wrong_is_counted_and_listed_and_the_rest_is_read(data: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(data / "images", images)
    (images / "00000002_000.jpg").write_bytes((images / "00000002_000.jpg").read_bytes()[:600])
    (images / "00000010_000.dcm").write_bytes(b"\0" * 128 + b"DICM and nothing else")
    (images / "deep" / "00000001_000.jpg").unlink()
    shutil.copy(images / "00000004_000.jpg", images / "deep" / "00000004_000.png")
    cv2.imwrite(str(images / "stranger.png"), np.zeros((64, 64), np.uint8))
    lines = (data / "labels.csv").read_text().splitlines()
    lines[7] = lines[7].replace("No Finding", "Cardiomegalie")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    result = run(data, tmp_path / "out", images=images, labels=tmp_path / "labels.csv")
    assert result.exit_code == 0, result.output
    with (tmp_path / "out" / "skipped.csv").open() as file:
        listed = {(row["problem"], row["subject"]) for row in csv.DictReader(file)}
    assert listed == {
        ("image-unreadable", "00000002_000.png"),
        ("image-unreadable", "00000010_000.png"),
        ("image-missing", "00000001_000.png"),
        ("image-twice", "00000004_000.png"),
        ("image-without-row", "stranger.png"),
        ("label-unknown", "00000006_000.png"),
    }
    assert "2 image-unreadable" in result.output
    assert len(read_predictions(tmp_path / "out").images) == IMAGES - 5
    assert "stranger.png" in (tmp_path / "out" / "report.html").read_text()


def test_a_split_leaves_the_others_out_and_says_what_it_names_in_vain(data: Path, tmp_path: Path) -> None:
    chosen = [f"{index:08d}_000.png" for index in range(60, IMAGES)]
    (tmp_path / "list.txt").write_text("\n".join([*chosen, "99999999_000.png"]))
    result = run(data, tmp_path / "out", "--split", str(tmp_path / "list.txt"))
    assert result.exit_code == 0, result.output
    assert read_predictions(tmp_path / "out").images.tolist() == chosen
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["input"]["outside_split"] == 60
    assert metrics["input"]["problems"] == {"listed-without-row": 1}


def test_no_image_at_all_is_an_error(data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run(data, tmp_path / "out", images=tmp_path / "empty")
    assert isinstance(result.exception, CxrNodeError)
    assert "none of the 83 labelled images" in str(result.exception)


def test_an_image_without_suffix_is_found_by_its_dicom_magic(tmp_path: Path) -> None:
    write(build("cr"), tmp_path / "1.2.3")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "labels.csv").write_text(f"{HEADER}\n1.2.3,96,drawn,Mass,PA,1,50,M")
    with open_files(tmp_path) as files:
        selection = select(files, read_table(tmp_path / "labels.csv"), None)
    assert [one.file for one in selection.images] == ["1.2.3"]
    assert selection.problems == ()


def test_names_are_compared_without_folder_and_image_suffix() -> None:
    assert image_key("a/b/00000001_000.JPG") == image_key("00000001_000.png") == "00000001_000"
    assert image_key("1.2.840.1") == "1.2.840.1"


def test_a_sixteen_bit_png_keeps_its_depth() -> None:
    ramp = np.tile(np.linspace(0, 65535, 80, dtype=np.uint16), (70, 1))
    encoded = cv2.imencode(".png", ramp)[1].tobytes()
    assert frame_of(encoded, PixelSettings(), CODECS).pixels == pytest.approx(ramp / 65535, abs=1e-6)


def test_a_truncated_or_oversized_picture_is_refused() -> None:
    encoded = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (200, 200), dtype=np.uint8))[1].tobytes()
    with pytest.raises(UndecodablePixels, match="damaged"):
        frame_of(encoded[: len(encoded) // 2], PixelSettings(), CODECS)
    with pytest.raises(UndecodablePixels, match="pixels"):
        frame_of(encoded, PixelSettings(maximum_pixels=10_000), CODECS)


def peak_at(row: int, column: int, label: str = "Infiltration") -> SaliencyMap:
    values = np.zeros((8, 8), dtype=np.float32)
    values[row, column] = 1.0
    return SaliencyMap(label=label, values=values)


def test_the_pointing_game_hits_inside_the_box_and_misses_outside(tmp_path: Path) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\na.png,Infiltrate,512,256,128,128,,,\n")
    boxes = read_boxes(path, list(NIH_TERMS))
    # Cell (2, 4) of 8 by 8 spans x 512-640 and y 256-384.
    (hit,) = compare_with_boxes("a.jpg", "1", [peak_at(2, 4), peak_at(0, 0, "Mass")], boxes)
    (miss,) = compare_with_boxes("a.png", "2", [peak_at(4, 2)], boxes)
    assert (hit.label, hit.hit, miss.hit) == ("Infiltration", True, False)
    assert hit.chance == pytest.approx((158 / 1024) ** 2)
    found = localisation([hit, miss], rounds=200, seed=0)["Infiltration"]
    assert (found.images, found.hits) == (2, 1)
    assert found.rate is not None
    assert (found.rate.value, found.rate.low, found.rate.high) == (0.5, 0.0, 1.0)


def test_boxes_reach_the_metrics_and_the_report(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\n00000001_000.png,Mass,0,0,1024,1024,,,\n")
    result = run(data, tmp_path / "out", "--boxes", str(path))
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["localisation"]["Mass"]["hits"] == 1
    assert "pointing game" in (tmp_path / "out" / "report.html").read_text()


def test_a_box_of_an_unknown_label_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\na.png,Fracture,0,0,9,9,,,\n")
    with pytest.raises(CxrNodeError, match=r"line 2.*Fracture"):
        read_boxes(path, list(NIH_TERMS))


def test_histories_a_target_and_confusion_matrices_reach_metrics_report_and_card(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.toml"
    target.write_text('[prevalence]\nMass = 0.1\n[images_per_patient]\n"2-4" = 1.0\n')
    out = tmp_path / "out"
    result = run(data, out, "--ever-ill", "--matched", str(target), "--title", "Drawn chests")
    assert result.exit_code == 0, result.output
    metrics = json.loads((out / "metrics.json").read_text())
    # Each patient but the last has one image with findings, so only the last one was never ill.
    assert metrics["history"]["negatives"] == {"ever ill": 41, "never ill": 1}
    assert metrics["history"]["auc"]["never ill"] is None
    assert metrics["matched"]["target"]["prevalence.Mass"] == {"present": 0.1, "absent": 0.9}
    cells = metrics["labels"]["Mass"]["operating_points"]["youden"]["confusion"]
    assert sum(cells.values()) == IMAGES
    assert cells["true_positives"] + cells["false_negatives"] == metrics["labels"]["Mass"]["positives"]
    spread = metrics["auc_range"]
    assert spread["minimum"] <= spread["median"] <= spread["maximum"]
    report = (out / "report.html").read_text()
    for heading in ("ever-ill and never-ill", "Confusion matrices", "target population", "Drawn chests"):
        assert heading in report
    card = evaluation_sections([read_evaluation(out)])
    assert card.startswith("## Evaluation: Drawn chests")
    assert "| of never ill patients | 1 | 1 | - |" in card
    assert "AUC by view" in card


def test_every_image_stands_in_its_labels_sheet_with_its_outcome(evaluated: Path) -> None:
    with (evaluated / "sheets" / "Mass.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == IMAGES
    probabilities = [float(row["probability"]) for row in rows]
    assert probabilities == sorted(probabilities, reverse=True)
    metrics = json.loads((evaluated / "metrics.json").read_text())
    point = metrics["labels"]["Mass"]["operating_points"]["youden"]
    assert [row["youden"] for row in rows].count("TP") == point["confusion"]["true_positives"]
    assert all((row["youden"] in {"TP", "FN"}) == (row["actual"] == "1") for row in rows)


def test_the_manifest_among_the_images_is_the_default_table(data: Path, evaluated: Path, tmp_path: Path) -> None:
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (data / "images").rglob("*.*"):
            file.write(path, path.relative_to(data))
        file.write(data / "labels.csv", "manifest.csv")
    arguments = ["evaluate", "--bundle", str(data / "bundle"), "--images", str(archive), "--bootstrap", "100"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "predictions.csv").read_text() == (evaluated / "predictions.csv").read_text()


def unlabelled(data: Path, out: Path, *options: str) -> Result:
    arguments = ["evaluate", "--unlabelled", "--bundle", str(data / "bundle"), "--images", str(data / "images")]
    return CliRunner().invoke(app, [*arguments, "--out", str(out), "--bootstrap", "100", *options])


def test_without_labels_the_share_of_positive_images_is_counted_by_view(data: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    lines = ["image,kind,view,patient"]
    lines += [f"{index:08d}_000.png,{'frontal' if index < 40 else 'other'},PA,{index}" for index in range(IMAGES)]
    table.write_text("\n".join(lines))
    out = tmp_path / "out"
    result = unlabelled(data, out, "--labels", str(table), "--only", "kind=frontal", "--known", "Drawn.")
    assert result.exit_code == 0, result.output
    metrics = json.loads((out / "metrics.json").read_text())
    group = metrics["unlabelled"]["PA"]
    assert group["images"] == metrics["unlabelled"]["all"]["images"] == 40
    predictions = read_predictions(out)
    manifest = open_bundle(data / "bundle").manifest
    threshold = manifest.labels[0].operating_points["youden"].threshold
    share = group["called"][manifest.labels[0].name]["youden"]["value"]
    assert share == pytest.approx((predictions.probability[:, 0] >= threshold).mean())
    assert metrics["input"]["problems"] == {}
    assert "Drawn." in evaluation_sections([read_evaluation(out)])


def test_without_a_table_every_image_is_read(data: Path, tmp_path: Path) -> None:
    result = unlabelled(data, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert len(read_predictions(tmp_path / "out").images) == IMAGES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--only", "kind"), "COLUMN=VALUE"),
        (("--only", "kind=frontal"), "needs a table"),
        (("--ever-ill",), "--unlabelled takes none of"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    data: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = unlabelled(data, tmp_path / "out", *options)
    assert isinstance(result.exception, CxrNodeError)
    assert message in str(result.exception)


def test_images_of_the_training_set_are_warned_of(data: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(data / "bundle", bundle)
    manifest = open_bundle(bundle).manifest
    names = [f"{index:08d}_000.png" for index in range(5)]
    write_training_images(bundle / TRAINING_IMAGES, names, np.zeros((5, 8, 8), dtype=np.uint8))
    files = manifest.files | {TRAINING_IMAGES: file_sha256(bundle / TRAINING_IMAGES)}
    (bundle / "manifest.json").write_text(manifest.model_copy(update={"files": files}).model_dump_json())
    result = run(data, tmp_path / "out", "--bundle", str(bundle))
    assert result.exit_code == 0, result.output
    assert "the bundle was trained on 5 of these 83 images" in " ".join(result.output.split())
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["training_images"]["trained_on"] == 5
    assert "trained on 5 of these 83 images" in (tmp_path / "out" / "report.html").read_text()
