"""From a release's images and tables to checked, patient-wise TFRecords, and back, without TensorFlow."""
