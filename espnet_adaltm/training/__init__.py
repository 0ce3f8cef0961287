"""Training on ESPnet's engine; the only package that imports ESPnet."""
