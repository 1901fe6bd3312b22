from __future__ import annotations

import csv

import pytest

from currents_ingest import config
from currents_ingest.audiences import csv_import
from currents_ingest.audiences.gathering import Target
from currents_ingest.errors import MappingError, SettingsError


def written(tmp_path, text, *, most=csv_import.MOST, **audience):
    source = tmp_path / "export.csv"
    source.write_text(text, "utf-8")
    given = {"source": str(source), "settle": "0s", "max_reject_share": 1.0}
    settings = config.read_audiences(
        feeds={"url": str(tmp_path / "feeds")}, audiences={"vip": given | audience}
    )
    target = Target("vip", settings.audiences["vip"])
    found = csv_import.write(settings, target, tmp_path / "out", most=most)
    return found, [(tmp_path / "out" / one).read_bytes() for one in found.files]


def test_the_file_is_what_the_user_import_takes(tmp_path):
    text = (
        "external_id,given_name,birthdate,zip,points,member,note\n"
        '007,Zoë,1990-01-31 00:00:00,0130,5,true,"a, b"\n'
        "u2,,,,-1.5,FALSE,\n"
        "007,Zoë,1990-01-31,0130,6,true,c\n"
    )
    found, (body,) = written(tmp_path, text)
    assert body.decode() == (
        "external_id,first_name,dob,zip,points,member,note\n"
        '"007","Zoë","1990-01-31","0130",6,true,"c"\n'
        '"u2",,,,-1.5,false,\n'
    )
    assert (found.people, found.rejected, found.left_out) == (2, 0, ())


def test_an_alias_takes_two_columns(tmp_path):
    text = "alias_name,points\na1,5\n"
    _, (body,) = written(tmp_path, text, identifier="user_alias", alias_label="crm")
    assert body.decode() == 'user_alias_name,user_alias_label,points\n"a1","crm",5\n'


@pytest.mark.parametrize(
    "cell",
    ["=1+1", "@SUM(A1)", "+cmd|x", "-cmd|x", "\tx", '=HYPERLINK("x")', 'a"b', "a\nb"],
)
def test_values_that_a_spreadsheet_would_run_or_the_import_refuse_are_left_out(
    tmp_path, cell
):
    inner = cell.replace('"', '""')
    text = f'external_id,note\nu1,"{inner}"\nu2,fine\n'
    found, (body,) = written(tmp_path, text)
    assert body.decode() == 'external_id,note\n"u2","fine"\n'
    assert found.rejected == 1
    assert all(cell not in reason for reason in found.reasons)


def test_phones_and_negative_numbers_are_no_formulas(tmp_path):
    text = "external_id,phone,n\nu1,+12125550123,-5\n"
    _, (body,) = written(tmp_path, text)
    assert body.decode() == 'external_id,phone,n\n"u1","+12125550123",-5\n'


def test_what_the_import_cannot_take_is_left_out_and_said(tmp_path):
    text = "external_id,tags,tier\nu1,\"['a','b']\",null\nu2,,gold\n"
    found, (body,) = written(tmp_path, text)
    assert body.decode() == 'external_id,tags,tier\n"u1",,\n"u2",,"gold"\n'
    assert found.left_out == (
        "tags: arrays and objects (1 values)",
        "tier: removals (1 values)",
    )


def test_files_are_cut_below_the_size_each_with_the_header(tmp_path):
    rows = [f"u{at},{at}" for at in range(1000)]
    text = "external_id,n\n" + "\n".join(rows)
    found, bodies = written(tmp_path, text, most=1000)
    assert len(bodies) > 5
    assert all(len(body) <= 1000 for body in bodies)
    read = [
        row for body in bodies for row in csv.DictReader(body.decode().splitlines())
    ]
    assert len(read) == found.people == 1000
    assert {row["external_id"] for row in read} == {f"u{at}" for at in range(1000)}


def test_a_header_that_a_spreadsheet_would_run_is_refused(tmp_path):
    with pytest.raises(MappingError, match="no header of the import may be called"):
        written(tmp_path, 'external_id,"=cmd(""x"")"\nu1,1\n')


def test_events_and_operations_have_no_such_file(tmp_path):
    with pytest.raises(SettingsError, match="is for attributes"):
        written(tmp_path, "external_id,n\nu1,1\n", operations={"n": "inc"})
