"""The control plane: it reads telemetry, detects drift, evolves policies, and rolls out proved better ones."""
