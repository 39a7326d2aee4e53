"""The built-in tasks, one YAML file each; installed as ``medi3d.configs``."""
