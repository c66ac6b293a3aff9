"""The protocol between a control plane, engines and everybody else: envelopes, notices, status, telemetry, the channel.

Both sides import it and declare none of it again. It imports no gate, no solver and no engine.
"""
