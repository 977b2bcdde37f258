"""Whatever is sent to the API, it answers as its description says, and never with a defect of its own."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

ENDLESS = "/api/v1/events"
PROMISES = [
    CHECKS.get_one("not_a_server_error"),
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


EXAMPLES = {GenerationMode.POSITIVE: 20, GenerationMode.NEGATIVE: 4}
SETTINGS = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_as_described_and_none_is_a_defect(ward, mode):
    headers = {"Authorization": f"Bearer {ward.token('admin')}"}
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", ward.app, headers=headers)
    tried = 0
    for found in schema.exclude(path=ENDLESS).get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue  # wrong arguments of the others are in test_api.py

        @settings(SETTINGS, max_examples=EXAMPLES[mode])
        @given(operation.as_strategy(generation_mode=mode))
        def every_answer_is_as_described(case):
            case.call_and_validate(checks=PROMISES, headers=headers)

        every_answer_is_as_described()
        tried += 1
    assert tried == (31 if mode is GenerationMode.POSITIVE else 8)
