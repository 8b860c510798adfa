// For OHIF's app-config.js: names the findings of cxrnode's reports and writes each on a line of its own.
//
//   window.config.customizationService = { onBeforeSRAddMeasurement: { $set: nameFinding } };
//
// Without it OHIF 3.13 labels a measurement "Probability: 0.22 1", without the finding, and puts the label beside the
// measurement's outline. That is the whole image for each of them, since the model claims no place, so the labels
// would lie on each other. Shown is what is present or undetermined, and in any case whether the image is abnormal.
function nameFinding({ measurement, SeriesInstanceUID }) {
  const items = sequence => (Array.isArray(sequence) ? sequence : sequence ? [sequence] : []);
  const child = (parent, code) =>
    items(parent.ContentSequence).find(item => items(item.ConceptNameCodeSequence)[0]?.CodeValue === code);
  const report = window.services.displaySetService
    .getActiveDisplaySets()
    .find(set => set.SeriesInstanceUID === SeriesInstanceUID && set.measurements?.includes(measurement));
  if (report?.instance.ManufacturerModelName !== 'cxrnode' || measurement.outline) return measurement;

  const groups = items(child(report.instance, '126010').ContentSequence); // Imaging Measurements
  const groupOf = one => groups.find(group => child(group, '112040').UID === one.TrackingUniqueIdentifier);
  const presence = one => items(child(groupOf(one), '705057003').ConceptCodeSequence)[0].CodeMeaning;
  const image = one => one.coords[0].ReferencedSOPSequence.ReferencedSOPInstanceUID;
  const isShown = one => one.TrackingIdentifier === 'Abnormal' || presence(one) !== 'Absent';

  measurement.outline = measurement.coords[0].GraphicData;
  const shown = report.measurements.filter(one => image(one) === image(measurement) && isShown(one));
  const bottom = Math.max(...measurement.outline.filter((_, index) => index % 2));
  const row = 0.05 * bottom * (1 + Math.max(0, shown.indexOf(measurement)));
  measurement.coords[0].GraphicData = [0, row, 0, row];
  const probability = items(child(groupOf(measurement), '122157').MeasuredValueSequence)[0].NumericValue;
  const name = measurement.TrackingIdentifier.replaceAll('_', ' ');
  const line = { label: name, value: `${probability}, ${presence(measurement).toLowerCase()}` };
  measurement.labels = isShown(measurement) ? [line] : [];
  return measurement;
}
