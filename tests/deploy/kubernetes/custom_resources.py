"""Strict schemas of the custom resources in deploy/kubernetes, from their definitions' public reference pages.

Only the fields that the manifests use, each with the definition's type, range and pattern: an unknown or misspelt field
is an error, and so is a field that is used for the first time and not yet looked up.

    ServiceMonitor, PrometheusRule   monitoring.coreos.com/v1
    ScaledObject                     keda.sh/v1alpha1 (2.17)
    InferencePool                    inference.networking.k8s.io/v1
    HTTPRoute                        gateway.networking.k8s.io/v1
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
NAME: Schema = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
PROMETHEUS_DURATION: Schema = {"type": "string", "pattern": r"^([0-9]+(ms|s|m|h|d|w|y))+$"}
GATEWAY_DURATION: Schema = {"type": "string", "pattern": r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
LABELS: Schema = {"type": "object", "minProperties": 1, "additionalProperties": {"type": "string", "maxLength": 63}}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}


def fields(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def several(item: Schema, at_most: int = 1000) -> Schema:
    return {"type": "array", "items": item, "minItems": 1, "maxItems": at_most}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def whole(least: int, most: int = 2**31 - 1) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most}


def resource(spec: Schema) -> Schema:
    metadata = fields({"name": NAME, "labels": LABELS}, {"namespace": NAME})
    return fields({"apiVersion": TEXT, "kind": TEXT, "metadata": metadata, "spec": spec})


SELECTOR = fields({"matchLabels": LABELS})

SERVICE_MONITOR = resource(
    fields(
        {
            "selector": SELECTOR,
            "endpoints": several(
                fields(
                    {"port": NAME, "path": {"type": "string", "pattern": "^/"}},
                    {
                        "interval": PROMETHEUS_DURATION,
                        "scrapeTimeout": PROMETHEUS_DURATION,
                        "authorization": fields({"credentials": fields({"name": NAME, "key": TEXT})}, {"type": TEXT}),
                    },
                )
            ),
        }
    )
)

PROMETHEUS_RULE = resource(
    fields(
        {
            "groups": several(
                fields(
                    {
                        "name": TEXT,
                        "rules": several(
                            fields(
                                {"alert": TEXT, "expr": TEXT, "labels": TEXTS, "annotations": TEXTS},
                                {"for": PROMETHEUS_DURATION, "keep_firing_for": PROMETHEUS_DURATION},
                            )
                        ),
                    }
                )
            )
        }
    )
)

SCALING_RULES = fields(
    {
        "policies": several(
            fields({"type": one_of("Pods", "Percent"), "value": whole(1), "periodSeconds": whole(1, 1800)})
        )
    },
    {"stabilizationWindowSeconds": whole(0, 3600), "selectPolicy": one_of("Max", "Min", "Disabled")},
)
SCALED_OBJECT = resource(
    fields(
        {
            "scaleTargetRef": fields({"name": NAME}),
            # Metadata of a trigger is text, also where it holds a number.
            "triggers": several(fields({"type": TEXT, "metadata": TEXTS}, {"name": NAME})),
        },
        {
            "pollingInterval": whole(1),
            "cooldownPeriod": whole(0),
            "minReplicaCount": whole(0),
            "maxReplicaCount": whole(1),
            "fallback": fields(
                {"failureThreshold": whole(1), "replicas": whole(0)},
                {"behavior": one_of("static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower")},
            ),
            "advanced": fields(
                {
                    "horizontalPodAutoscalerConfig": fields(
                        {"behavior": fields({}, {"scaleUp": SCALING_RULES, "scaleDown": SCALING_RULES})}
                    )
                }
            ),
        },
    )
)

INFERENCE_POOL = resource(
    fields(
        {
            "selector": SELECTOR,
            "targetPorts": several(fields({"number": PORT}), at_most=8),
            "endpointPickerRef": fields(
                {"name": NAME},
                {
                    "kind": TEXT,
                    "port": fields({"number": PORT}),
                    "failureMode": one_of("FailOpen", "FailClose"),
                },
            ),
        },
        {"appProtocol": one_of("http", "kubernetes.io/h2c")},
    )
)

HTTP_ROUTE = resource(
    fields(
        {
            "parentRefs": several(fields({"name": NAME}, {"namespace": NAME}), at_most=32),
            "rules": several(
                fields(
                    {
                        "matches": several(
                            fields(
                                {
                                    "path": fields(
                                        {
                                            "type": one_of("Exact", "PathPrefix", "RegularExpression"),
                                            "value": {"type": "string", "pattern": "^/", "maxLength": 1024},
                                        }
                                    )
                                }
                            ),
                            at_most=64,
                        ),
                        "backendRefs": several(
                            {
                                "oneOf": [
                                    fields({"group": TEXT, "kind": TEXT, "name": NAME}),
                                    # A Service, which needs its port.
                                    fields({"name": NAME, "port": PORT}),
                                ]
                            },
                            at_most=16,
                        ),
                    },
                    {"timeouts": fields({}, {"request": GATEWAY_DURATION, "backendRequest": GATEWAY_DURATION})},
                ),
                at_most=16,
            ),
        },
        {"hostnames": several(TEXT, at_most=16)},
    )
)

SCHEMAS = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"): SERVICE_MONITOR,
    ("monitoring.coreos.com/v1", "PrometheusRule"): PROMETHEUS_RULE,
    ("keda.sh/v1alpha1", "ScaledObject"): SCALED_OBJECT,
    ("inference.networking.k8s.io/v1", "InferencePool"): INFERENCE_POOL,
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): HTTP_ROUTE,
}
"""By apiVersion and kind. Whatever is not here is one of Kubernetes' own."""
