-- When the bytes of a received image or of a result were removed by the rules of retention; their rows stay.

ALTER TABLE instance ADD COLUMN purged_at TEXT;
ALTER TABLE result ADD COLUMN purged_at TEXT;

CREATE INDEX instance_kept ON instance (study) WHERE purged_at IS NULL;
CREATE INDEX result_kept ON result (study) WHERE purged_at IS NULL;
