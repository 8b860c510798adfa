"""What tests share: builders of objects, peers that behave and misbehave, and real programs."""
