"""Where images come from: documents, layouts and archives on this machine, registries."""
