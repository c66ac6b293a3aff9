"""The control plane: telemetry in, drift, evolution, and the rollout of what is proved and better."""
