"""What ``validate`` found, as HTML that loads nothing and as JUnit XML."""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from currents_ingest.pages import templates

if TYPE_CHECKING:
    from currents_ingest.compatibility import Verdict
    from currents_ingest.validate import Report, SchemaReport, Trouble

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no way to write."""


def html(report: Report) -> str:
    """Return a page of its own: no script, nothing from outside, all text escaped."""
    return templates(escape=True).get_template("validate.html").render(report=report)


def junit(report: Report, fail_on: Verdict | None) -> str:
    """Return JUnit XML: a suite for each event type, a case for each schema.

    Args:
        report: What was found.
        fail_on: The least verdict that is a failure; None: none is.
    """
    root = Element("testsuites", name="currents-ingest validate")
    for event_type, group in groupby(report.schemas, key=lambda one: one.event_type):
        suite = SubElement(root, "testsuite", name=_xml(event_type))
        for one in group:
            _case(suite, one, fail_on)
        _count(suite)
    for name, found, fails in (
        ("quarantine", report.troubles, fail_on is not None),
        ("unread", report.unread, True),
    ):
        if found:
            suite = SubElement(root, "testsuite", name=name)
            for trouble in found:
                _trouble(suite, trouble, fails=fails)
            _count(suite)
    _count(root)
    indent(root)
    return tostring(root, "unicode", xml_declaration=True) + "\n"


def _case(suite: Element, one: SchemaReport, fail_on: Verdict | None) -> None:
    name = f"{one.fingerprint}, {one.files} files"
    case = SubElement(suite, "testcase", classname=_xml(one.event_type), name=name)
    text = "\n".join((*one.differences, f"in {one.example}"))
    if fail_on and one.verdict.rank >= fail_on.rank:
        SubElement(case, "failure", message=one.verdict).text = _xml(text)
    elif one.differences:
        SubElement(case, "system-out").text = _xml(f"{one.verdict}\n{text}")


def _trouble(suite: Element, one: Trouble, *, fails: bool) -> None:
    case = SubElement(
        suite, "testcase", classname=_xml(one.event_type), name=_xml(one.reason)
    )
    kind = "failure" if fails else "system-out"
    SubElement(case, kind).text = _xml(f"{one.files} files, such as {one.example}")


def _count(element: Element) -> None:
    element.set("tests", str(len(element.findall(".//testcase"))))
    element.set("failures", str(len(element.findall(".//failure"))))


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
