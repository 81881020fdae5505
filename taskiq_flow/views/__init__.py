"""What the events of a run say: views, and reports that are made of them."""
