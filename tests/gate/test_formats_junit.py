"""JUnit XML: of the form that Jenkins reads, read back by a consumer, and compared with the records."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from junitparser import Error, Failure, JUnitXml
from lxml import etree

from memplan.gate.formats.console import verdict_details
from memplan.gate.formats.contents import plain
from memplan.gate.formats.junit import junit_text
from memplan.gate.records import GateResult
from tests.gate import toy

#: What Jenkins' junit-10.xsd allows of the elements that memplan writes, in words of our own: no package carries that
#: schema. It knows more elements and attributes; what it does not know, such as a file or properties of a test case,
#: fails here too. A time has at most three decimals.
FORM = """
<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema">
  <xs:simpleType name="seconds">
    <xs:restriction base="xs:string"><xs:pattern value="[0-9]+[.][0-9]{3}"/></xs:restriction>
  </xs:simpleType>
  <xs:complexType name="outcome">
    <xs:simpleContent>
      <xs:extension base="xs:string">
        <xs:attribute name="type" use="required"/>
        <xs:attribute name="message" use="required"/>
      </xs:extension>
    </xs:simpleContent>
  </xs:complexType>
  <xs:complexType name="case">
    <xs:choice minOccurs="0" maxOccurs="unbounded">
      <xs:element name="failure" type="outcome"/>
      <xs:element name="error" type="outcome"/>
      <xs:element name="system-out" type="xs:string"/>
    </xs:choice>
    <xs:attribute name="name" use="required"/>
    <xs:attribute name="classname" use="required"/>
  </xs:complexType>
  <xs:complexType name="suite">
    <xs:sequence>
      <xs:element name="properties">
        <xs:complexType>
          <xs:sequence>
            <xs:element name="property" maxOccurs="unbounded">
              <xs:complexType>
                <xs:attribute name="name" use="required"/>
                <xs:attribute name="value" use="required"/>
              </xs:complexType>
            </xs:element>
          </xs:sequence>
        </xs:complexType>
      </xs:element>
      <xs:element name="testcase" type="case" minOccurs="0" maxOccurs="unbounded"/>
    </xs:sequence>
    <xs:attribute name="name" use="required"/>
    <xs:attribute name="tests" type="xs:nonNegativeInteger" use="required"/>
    <xs:attribute name="failures" type="xs:nonNegativeInteger" use="required"/>
    <xs:attribute name="errors" type="xs:nonNegativeInteger" use="required"/>
    <xs:attribute name="skipped" type="xs:nonNegativeInteger" use="required"/>
    <xs:attribute name="time" type="seconds" use="required"/>
    <xs:attribute name="file"/>
  </xs:complexType>
  <xs:element name="testsuites">
    <xs:complexType>
      <xs:sequence><xs:element name="testsuite" type="suite"/></xs:sequence>
      <xs:attribute name="name"/>
      <xs:attribute name="tests" type="xs:nonNegativeInteger"/>
      <xs:attribute name="failures" type="xs:nonNegativeInteger"/>
      <xs:attribute name="errors" type="xs:nonNegativeInteger"/>
      <xs:attribute name="time" type="seconds"/>
    </xs:complexType>
  </xs:element>
</xs:schema>
"""
SCHEMA = etree.XMLSchema(etree.fromstring(FORM))

RESULTS = {
    "mixed": toy.mixed(),
    "warnings": toy.mixed(warn_only=True),
    "no baseline": toy.without_baseline(),
    "many": toy.many(3, 2),
    "none": toy.empty(),
    **{f"hostile {name!a}": toy.hostile(name) for name in toy.HOSTILE},
    **{f"hostile warning {name!a}": toy.hostile(name, warn_only=True) for name in toy.HOSTILE},
}


def suite(result: GateResult) -> ElementTree.Element:
    """Return the one suite, as a strict parser reads it from the file's bytes."""
    (only,) = ElementTree.fromstring(junit_text(result, toy.VERSION).encode())
    return only


def cases(result: GateResult) -> dict[str, ElementTree.Element]:
    return {case.attrib["name"]: case for case in suite(result).iter("testcase")}


def properties(result: GateResult) -> dict[str, str]:
    return {entry.attrib["name"]: entry.attrib["value"] for entry in suite(result).iter("property")}


@pytest.mark.parametrize("name", RESULTS)
def test_the_form_is_what_jenkins_reads(name: str) -> None:
    SCHEMA.assertValid(etree.fromstring(junit_text(RESULTS[name], toy.VERSION).encode()))


def test_the_form_refuses_what_jenkins_does_not_know() -> None:
    document = etree.fromstring(junit_text(toy.mixed(), toy.VERSION).encode())
    next(document.iter("testcase")).set("line", "7")
    assert not SCHEMA.validate(document)


@pytest.mark.parametrize("name", RESULTS)
def test_a_consumer_reads_the_counts(name: str) -> None:
    result = RESULTS[name]
    (read,) = JUnitXml.fromstring(junit_text(result, toy.VERSION).encode())
    outcomes = [{type(outcome) for outcome in case.result} for case in read]
    assert (read.tests, read.failures, read.errors, read.skipped) == (
        len(result.verdicts),
        outcomes.count({Failure}),
        outcomes.count({Error}),
        0,
    )
    broken = [not verdict.analysed for verdict in result.verdicts]
    failing = [not verdict.holds and verdict.analysed for verdict in result.verdicts]
    assert [outcome == {Error} for outcome in outcomes] == broken
    assert [outcome == {Failure} for outcome in outcomes] == [each and not result.warn_only for each in failing]


def test_every_size_is_a_property_of_the_suite() -> None:
    told = properties(toy.mixed())
    sizes = {name: int(value) for name, value in told.items() if name.endswith("bytes")}
    assert sizes == {
        # 105 MB of layers, 1 MB of the batch, 1 MB of margin; before 105 / 2 + 1, of which 2 % more is 54.57 MB.
        "deep/stock.peak.bytes": 107_000_000,
        "deep/stock.peak.limit_bytes": 54_570_000,
        "deep/stock.peak.baseline_bytes": 53_500_000,
        "deep/stock.peak.growth_bytes": 107_000_000 - 53_500_000,
        "small/saved.saved.bytes": 6_000_000,
        "small/saved.saved.limit_bytes": 6_000_000,
        "small/saved.saved.baseline_bytes": 6_000_000,
        "small/saved.saved.growth_bytes": 0,
        "growing.peak.bytes": 3_400_000,
        "growing.peak.limit_bytes": 3_100_000,
        "growing.peak.baseline_bytes": 3_000_000,
        "growing.peak.growth_bytes": 400_000,
        "fresh.peak.bytes": 12_345,
    }
    assert (told["memplan"], told["config"], told["baseline"]) == (toy.VERSION, toy.CONFIG, "memplan-baseline.json")
    assert suite(toy.mixed()).attrib["time"] == "4.250"


def test_a_failure_has_its_kind_its_sentence_and_the_details() -> None:
    verdict = toy.over_budget()
    case = cases(toy.mixed())["deep/stock"]
    assert case.attrib["classname"] == toy.CONFIG
    first, second = case.findall("failure")
    assert [each.attrib for each in (first, second)] == [
        {"type": failure.kind, "message": failure.sentence} for failure in verdict.failures
    ]
    assert first.text == f"{toy.CONFIG}:7\n{verdict_details(verdict)}"
    assert second.text == verdict.failures[1].sentence


def test_a_model_that_could_not_be_analysed_is_an_error() -> None:
    case = cases(toy.mixed())["broken"]
    error = case.find("error")
    assert error is not None
    assert error.attrib == {"type": "analysis", "message": toy.broken().failures[0].sentence}
    assert len(case) == 1


def test_what_holds_has_at_most_its_notes() -> None:
    found = cases(toy.mixed())
    assert len(found["small/saved"]) == 0
    assert [(each.tag, each.text) for each in found["fresh"]] == [("system-out", toy.fresh().notes[0])]


def test_warnings_pass_and_are_output_and_a_broken_model_does_not() -> None:
    found = cases(toy.mixed(warn_only=True))
    assert [each.tag for each in found["deep/stock"]] == ["system-out"]
    assert found["deep/stock"][0].text == f"{toy.CONFIG}:7\n{verdict_details(toy.over_budget())}"
    assert [each.tag for each in found["broken"]] == ["error"]
    totals = suite(toy.mixed(warn_only=True)).attrib
    assert (totals["tests"], totals["failures"], totals["errors"]) == ("5", "0", "1")


@pytest.mark.parametrize("name", toy.HOSTILE, ids=ascii)
def test_a_name_is_read_back_as_one_line(name: str) -> None:
    shown = re.sub("[\ufffe\uffff]", "", plain(name))
    names = [case.attrib["name"] for case in suite(toy.hostile(name)).iter("testcase")]
    assert names == [shown] * 3
    failure = next(suite(toy.hostile(name)).iter("failure"))
    assert failure.attrib["message"] == shown
