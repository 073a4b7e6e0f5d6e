"""Windows, drift tests, decisions, dashboards, alerts and the traffic simulator."""
