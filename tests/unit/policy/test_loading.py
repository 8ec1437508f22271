import json

import pycountry
import pytest

from policy.countries import COUNTRIES
from policy.document import PolicyDocument
from policy.errors import PolicyRejected
from policy.loading import MAX_DOCUMENT_BYTES, json_schema, load_policy, load_policy_files
from tests.unit.policy.documents import POLICY, bend, codes_of, findings_of


def test_a_policy_that_stands_loads_with_its_notes():
    loaded = load_policy(POLICY, "p.yaml")
    assert loaded.text == POLICY
    assert {finding.severity for finding in loaded.findings} == {"info"}
    assert loaded.document.residency[1].idcs == {"fra": 60, "ams": 40}


def test_the_document_survives_its_json_form():
    document = load_policy(POLICY).document
    assert PolicyDocument.from_json(document.to_json()) == document


def test_stored_json_spells_defaults_out_so_that_later_defaults_cannot_change_old_revisions():
    assert json.loads(load_policy(POLICY).document.to_json())["residency"][0]["shards"] == 16


def test_every_finding_comes_at_once_with_its_place():
    broken = bend(("fra: 60", "frx: 60"), ("MY]", "DE, 12]"), ("int64}", "int32}"), ("from: [SG]", "form: [SG]"))
    places = {(f.code, f.line, f.column, f.path) for f in findings_of(broken) if f.severity == "error"}
    assert places == {
        ("UNKNOWN_IDC", 12, 63, "residency[1].idcs.frx"),
        ("SCHEMA", 13, 36, "residency[2].regions[2]"),
        ("SCHEMA", 15, 5, "access[0].from"),
        ("SCHEMA", 15, 39, "access[0].form"),
        ("SCHEMA", 22, 21, "datasets.customers.columns.spend.type"),
    }


def test_a_finding_names_file_line_and_column():
    line = str(findings_of(bend(("jurisdiction: CN", "jurisdiction: cn")))[0])
    assert line.startswith("p.yaml:3:23: error: 'cn' is not a jurisdiction: ")


def test_a_typing_error_gets_a_hint():
    assert "did you mean from?" in str(findings_of(bend(("from: [SG]", "form: [SG]"))))
    assert "did you mean fra?" in str(findings_of(bend(("fra: 60", "frx: 60"))))
    assert "did you mean NORDIC?" in str(findings_of(bend(("DE, NORDIC", "DE, NORDICS"))))


def test_norway_and_on_are_words_whatever_yaml_the_document_claims():
    text = "%YAML 1.1\n---\n" + POLICY
    assert "NO" in load_policy(text).document.groups["NORDIC"]
    assert load_policy(bend(("purposes: [support]", "purposes: [on]"), text=POLICY.split("expect:")[0]))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("YAML_SYNTAX", "a: [1,\nb: 2"),
        ("YAML_SYNTAX", ""),
        ("YAML_SYNTAX", "a: 1\n---\nb: 2"),
        ("YAML_SYNTAX", "[" * 100_000),
        ("YAML_SYNTAX", "a: \x00"),
        ("YAML_SYNTAX", 'version: "\\ud800"'),
        ("YAML_ALIAS", "a: &x {b: *x}"),
        ("YAML_TAG", "a: !!python/object:os.system 1"),
        ("YAML_KEY", "? [a, b]\n: 1"),
        ("SCHEMA", "just a word"),
        ("SCHEMA", "~"),
        ("SCHEMA", "idcs: 5\ngroups: []\nresidency: {}"),
        ("SIZE", "#" * (MAX_DOCUMENT_BYTES + 1)),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_no_policy_is_rejected_with_a_finding(code, text):
    assert code in codes_of(text)


def test_aliases_that_multiply_are_cut_off():
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
    )
    assert "YAML_SIZE" in codes_of(bomb)


def test_a_key_that_stands_twice_is_an_error_and_names_the_first():
    text = bend(("  fra: {jurisdiction: EU}\n", "  fra: {jurisdiction: EU}\n  fra: {jurisdiction: SG}\n"))
    (finding,) = [f for f in findings_of(text) if f.code == "YAML_DUPLICATE_KEY"]
    assert (finding.line, finding.column) == (5, 3)
    assert "first at line 4, column 3" in finding.message


def test_numbers_are_not_taken_for_words_nor_words_for_numbers():
    assert "SCHEMA" in codes_of(bend(("[SG, MY]", "[SG, 419]")))
    assert codes_of(bend(("[SG, MY]", "[SG, '419']"))) == []
    assert "SCHEMA" in codes_of(bend(("fra: 60", "fra: '60'")))
    assert "SCHEMA" in codes_of(bend(("fra: 60", "fra: true")))
    assert "SCHEMA" in codes_of(bend(("shards: 8", "shards: 0x8")))


@pytest.mark.parametrize("name", ["region_code", "seq", "Name", "x" * 42, "größe", "xmin", "and"])
def test_column_names_keep_their_grammar_and_reserved_words_stay_reserved(name):
    assert codes_of(bend(("      spend:", f"      {name}:"))) == ["SCHEMA"]


def test_the_files_of_a_folder_are_one_document(tmp_path):
    head, tail = POLICY.split("access:")
    (tmp_path / "a.yaml").write_text(head)
    (tmp_path / "b.yml").write_text("access:" + tail)
    (tmp_path / "c.yaml").write_text("version: 1\naccess:\n  - {name: x, regions: [MY], from: [EU], purposes: [y]}\n")
    with pytest.raises(PolicyRejected) as raised:
        load_policy_files(tmp_path)
    (finding,) = [f for f in raised.value.findings if f.severity == "error"]
    assert (finding.file, finding.path) == (str(tmp_path / "c.yaml"), "access[2].operations")
    assert (finding.line, finding.column) == (3, 5)
    (tmp_path / "c.yaml").unlink()
    loaded = load_policy_files(tmp_path)
    assert loaded.document == load_policy(POLICY).document
    assert load_policy(loaded.text).document == loaded.document


def test_what_stands_in_two_files_is_an_error(tmp_path):
    (tmp_path / "a.yaml").write_text(POLICY)
    (tmp_path / "b.yaml").write_text("version: 2\ngroups: {EU: [FR]}\n")
    with pytest.raises(PolicyRejected) as raised:
        load_policy_files(tmp_path)
    assert {"YAML_DUPLICATE_KEY", "SCHEMA"} == {f.code for f in raised.value.findings if f.severity == "error"}


def test_a_folder_without_policies_is_rejected(tmp_path):
    with pytest.raises(PolicyRejected, match=r"no \.yaml files"):
        load_policy_files(tmp_path)


def test_the_json_schema_knows_every_field_and_closes_every_mapping():
    schema = json_schema()
    assert list(schema["properties"]) == list(PolicyDocument.model_fields)
    assert "from" in schema["$defs"]["AccessRule"]["properties"]
    assert "class" in schema["$defs"]["ColumnEntry"]["properties"]
    assert schema["properties"]["idcs"]["additionalProperties"] is False
    assert all(part["additionalProperties"] is False for part in schema["$defs"].values() if "properties" in part)


def test_the_country_table_is_iso_3166():
    assert {country.alpha_2 for country in pycountry.countries} == COUNTRIES
