"""Every structure file that a biologist has: the right residues at the right places, or one sentence."""

import gzip
import io
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from biotite.structure import info
from biotite.structure.io.pdbx import BinaryCIFFile, CIFFile
from fetch_biopython_structures import FOLDER
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carp_nb import coordinates
from carp_nb.atoms import read_atoms, read_structure, split_chains
from carp_nb.coordinates import Chain, placed_chain, read_chain
from carp_nb.errors import CarpError
from carp_nb.tasks import read_contacts

CASES = Path(__file__).parent / "cases"
SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQ"
few = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def resolved(chain: Chain) -> list[int]:  # from 1
    return (np.flatnonzero(np.isfinite(chain.ca).all(1)) + 1).tolist()


@pytest.mark.parametrize(
    ("name", "sequence", "missing"),
    [
        ("s_plain", SEQUENCE, ()),
        ("s_alt", SEQUENCE, ()),
        ("s_HSE", SEQUENCE, ()),
        ("s_h", f"H{SEQUENCE[1:-1]}H", ()),
        ("s_gap_seqres", SEQUENCE, range(9, 13)),
        ("s_rep", "MKAAAAAAAAKQRQISFVKSHF", range(5, 9)),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_small_cases(name, sequence, missing, tmp_path):
    chain = read_chain(CASES / f"{name}.pdb")
    assert chain.sequence == sequence
    assert resolved(chain) == [i for i in range(1, 23) if i not in missing]
    packed = tmp_path / "x.ent.gz"
    packed.write_bytes(gzip.compress((CASES / f"{name}.pdb").read_bytes()))
    np.testing.assert_array_equal(read_chain(packed).cb, chain.cb)
    # the same where the caller gives the sequence, and on the map
    np.testing.assert_array_equal(read_chain(CASES / f"{name}.pdb", sequence=sequence).cb, chain.cb)
    placed = placed_chain(CASES / f"{name}.pdb", sequence)
    assert sorted(set(placed.res_id.tolist())) == resolved(chain)


def test_a_name_of_a_program_is_said():
    with pytest.warns(UserWarning, match="HSE as H"):
        read_chain(CASES / "s_HSE.pdb")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("labels", ["AB", "12", "BA", "a1"])
def test_the_fuller_of_two_locations_is_taken_whatever_its_label(labels, tmp_path):
    lines = []
    for line in (CASES / "s_plain.pdb").read_text().splitlines():
        if line[22:26] == "   6" and line.startswith("ATOM"):
            other = f"{line[:16]}{labels[0]}VAL{line[20:54]}  0.40{line[60:]}"
            moved = f"{line[:16]}{labels[1]}{line[17:30]}{9:8.3f}{line[38:54]}  0.60{line[60:]}"
            lines += [other, moved]
        else:
            lines.append(line)
    (tmp_path / "x.pdb").write_text("\n".join(lines))
    chain = read_chain(tmp_path / "x.pdb")
    assert chain.sequence == SEQUENCE
    assert chain.ca[5, 0] == 9


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("first", "second", "x"), [(0.6, 0.4, 0.0), (0.4, 0.6, 9.0)])
def test_the_first_of_two_locations_may_have_no_label(first, second, x, tmp_path):
    lines = [
        line_of("GLY", "1 ", 0.0, occupancy=first),
        line_of("GLY", "1 ", 9.0, occupancy=second, alternate="B"),
        line_of("LYS", "2 ", 3.8),
    ]
    (tmp_path / "x.pdb").write_text("\n".join(lines))
    chain = read_chain(tmp_path / "x.pdb")
    assert (chain.sequence, chain.ca[0, 0]) == ("GK", x)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.filterwarnings("ignore")
def test_text_is_read_as_editors_save_it(encoding, end, tmp_path):
    for text in ("\n".join(trace(("ALA", "1 ", 0), ("GLY", "2 ", 1))), MMCIF):
        (tmp_path / "x.pdb").write_bytes(text.replace("\n", end).encode(encoding))
        assert len(resolved(read_chain(tmp_path / "x.pdb"))) == 2


def test_chains_without_names_are_told_apart(tmp_path):
    text = (CASES / "s_two.pdb").read_text().splitlines()
    lines = [f"{line[:21]} {line[22:]}" if line.startswith("ATOM") else line for line in text]
    second = next(i for i, line in enumerate(text) if line[21:22] == "B")
    lines.insert(second, "TER")
    (tmp_path / "x.pdb").write_text("\n".join(lines))
    with pytest.warns(UserWarning, match="told apart by TER as 1, 2"):
        chains = split_chains(read_atoms(tmp_path / "x.pdb"))
    assert list(chains) == ["1", "2"]


def test_targets_of_one_file_name_are_kept_and_two_chains_are_refused(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "target.pdb").write_bytes((CASES / "s_plain.pdb").read_bytes())
    task = read_contacts(tmp_path, "test")
    assert task.table.id.tolist() == ["a/target", "b/target", "c/target"]
    assert task.table.sequence.tolist() == [SEQUENCE] * 3
    (tmp_path / "c/target.pdb").write_bytes((CASES / "s_gap_seqres.pdb").read_bytes())
    assert read_contacts(tmp_path, "test").table.sequence[2] == SEQUENCE
    (tmp_path / "c/target.pdb").write_bytes((CASES / "s_two.pdb").read_bytes())
    with pytest.raises(CarpError, match=r"target.pdb holds 2 chains, A, B"):
        read_contacts(tmp_path, "test")


STRUCTURES = sorted(p for p in FOLDER.glob("*") if p.name.lower().endswith((".cif", ".bcif.gz")))
WITHOUT_ATOMS = ("1MOM_min.cif", "4Q9R_min.cif")  # only headers
needs_biopython = pytest.mark.skipif(
    not STRUCTURES, reason="python tests/fetch_biopython_structures.py has not been run"
)


@cache
def tables_of(path: Path):
    "The block of a file, read without the reader under test."
    data = path.read_bytes()
    if path.suffix == ".gz":
        return BinaryCIFFile.read(io.BytesIO(gzip.decompress(data))).block
    return CIFFile.read(io.StringIO(data.decode())).block


@cache
def columns_of(path: Path, table: str) -> dict[str, list[str]]:
    "The columns of a table as text; none for a table that is not there."
    category = tables_of(path).get(table, {})
    return {name: column.as_array(str).tolist() for name, column in category.items()}


def is_of_protein(path: Path, i: int) -> bool:
    "Whether an atom is one of a protein, by its entity, or by its residue where none is listed."
    site = columns_of(path, "atom_site")
    poly = columns_of(path, "entity_poly")
    if not poly:
        return site["label_comp_id"][i] in info.amino_acid_names()
    kinds = dict(zip(poly["entity_id"], poly["type"]))
    return "polypeptide" in kinds.get(site["label_entity_id"][i], "")


@cache
def stated_places(path: Path) -> dict[str, dict[int, np.ndarray]]:
    "Cα of the first model by chain and label_seq_id."
    site = columns_of(path, "atom_site")
    chains: dict[str, dict[int, np.ndarray]] = {}
    fullest: dict[tuple, float] = {}
    for i, number in enumerate(site["label_seq_id"]):
        is_first = site["pdbx_PDB_model_num"][i] == site["pdbx_PDB_model_num"][0]
        is_ca = site["label_atom_id"][i] == "CA" and number.isdigit()
        if not is_first or not is_ca or not is_of_protein(path, i):
            continue
        key = (site["auth_asym_id"][i], int(number))
        occupancy = float(site["occupancy"][i])
        if occupancy > fullest.get(key, -1):
            fullest[key] = occupancy
            place = [float(site[f"Cartn_{axis}"][i]) for axis in "xyz"]
            chains.setdefault(key[0], {})[key[1]] = np.array(place)
    return chains


def check_places(chain: Chain, places: dict[int, np.ndarray]) -> None:
    "A chain has its residues where the places are stated."
    assert resolved(chain) == sorted(places)
    found = chain.ca[np.array(sorted(places)) - 1]
    np.testing.assert_allclose(found, [places[i] for i in sorted(places)], atol=2e-3)


@needs_biopython
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", STRUCTURES, ids=lambda path: path.name)
def test_places_are_those_of_label_seq_id(path, monkeypatch):
    if path.name in WITHOUT_ATOMS:
        with pytest.raises(CarpError, match="it has no atoms"):
            read_atoms(path)
        return
    # a file of twelve chains is parsed once
    monkeypatch.setattr(coordinates, "read_structure", cache(read_structure))
    chains = stated_places(path)
    # two chains of 1SSU_mod have no Cα
    assert set(chains) <= set(coordinates.read_structure(path).chains())
    for name, places in chains.items():
        check_places(read_chain(path, name), places)


@needs_biopython
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["1A8O", "1LCD", "2BEG", "2XHE"])
def test_a_pdb_file_has_the_places_of_its_mmcif_file(name, monkeypatch):
    monkeypatch.setattr(coordinates, "read_structure", cache(read_structure))
    for chain, places in stated_places(FOLDER / f"{name}.cif").items():
        check_places(read_chain(FOLDER / f"{name}.pdb", chain), places)


def seqres(path: Path, entity: str, chain: str) -> list[str]:
    "The sequence of an entity in the layout of PDB."
    names = columns_of(path, "entity_poly_seq")
    places: dict[int, str] = {}
    for owner, number, name in zip(names["entity_id"], names["num"], names["mon_id"]):
        if owner == entity:
            places.setdefault(int(number), name)
    residues = list(places.values())
    return [
        f"SEQRES {k // 13 + 1:3d} {chain} {len(residues):4d}  {' '.join(residues[k : k + 13])}"
        for k in range(0, len(residues), 13)
    ]


def as_pdb(path: Path) -> str:
    "The proteins of an mmCIF file as PDB: SEQRES, the author's numbers, insertion codes."
    site = columns_of(path, "atom_site")
    stated: dict[str, list[str]] = {}
    atoms: dict[str, list[str]] = {}
    for i, number in enumerate(site["label_seq_id"]):
        is_first = site["pdbx_PDB_model_num"][i] == site["pdbx_PDB_model_num"][0]
        if not is_first or not number.isdigit() or not is_of_protein(path, i):
            continue
        chain = site["auth_asym_id"][i]
        if chain not in stated:
            stated[chain] = seqres(path, site["label_entity_id"][i], chain)
        alternate = site["label_alt_id"][i].replace(".", " ")
        code = site["pdbx_PDB_ins_code"][i].replace("?", " ").replace(".", " ")
        xyz = "".join(f"{float(site[f'Cartn_{axis}'][i]):8.3f}" for axis in "xyz")
        atoms.setdefault(chain, []).append(
            f"{site['group_PDB'][i]:6}{i % 99999:5d} {site['label_atom_id'][i]:^4.4}{alternate}"
            f"{site['label_comp_id'][i]:>3} {chain}{int(site['auth_seq_id'][i]):4d}{code}   {xyz}"
            f"{float(site['occupancy'][i]):6.2f}  0.00          {site['type_symbol'][i]:>2}"
        )
    lines = [line for part in stated.values() for line in part]
    for part in atoms.values():
        lines += [*part, "TER"]
    return "\n".join([*lines, "END"])


WITH_RESIDUES = [
    p for p in STRUCTURES if p.suffix == ".cif" and b"_entity_poly_seq.mon_id" in p.read_bytes()
]


@needs_biopython
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", WITH_RESIDUES, ids=lambda path: path.name)
def test_seqres_numbers_and_bonds_give_the_places_of_label_seq_id(path, tmp_path, monkeypatch):
    (tmp_path / "x.pdb").write_text(as_pdb(path))
    monkeypatch.setattr(coordinates, "read_structure", cache(read_structure))
    for chain, places in stated_places(path).items():
        check_places(read_chain(tmp_path / "x.pdb", chain), places)


def line_of(
    residue: str,
    number: str,  # with its insertion code in the last column, as "  52A" or "  52 "
    x: float,  # Å
    chain: str = "A",
    record: str = "ATOM",
    atom: str = "CA",
    alternate: str = " ",
    occupancy: float = 1.0,
) -> str:
    "One atom on the x axis."
    return (
        f"{record:6}    1  {atom:3}{alternate}{residue:>3} {chain}{number:>5}   {x:8.3f}{0:8.3f}{0:8.3f}"
        f"{occupancy:6.2f}  0.00           C"
    )


def trace(*residues: tuple[str, str, int], chain: str = "A") -> list[str]:
    "A trace of Cα: names, numbers and, by 3.8 Å, places on the x axis."
    return [line_of(name, number, 3.8 * i, chain) for name, number, i in residues]


FOUR = ("ALA", "GLY", "LYS", "TRP")
STATED = "SEQRES   1 A    6  ALA GLY GLY GLY LYS TRP"


@pytest.mark.parametrize(
    ("numbers", "x", "sequence", "places"),
    [
        # negative numbers, with a zero and without
        (["-1 ", "0 ", "1 ", "2 "], [0, 1, 2, 3], "AGKW", [1, 2, 3, 4]),
        (["-2 ", "-1 ", "1 ", "2 "], [0, 1, 2, 3], "AGKW", [1, 2, 3, 4]),
        # insertion codes
        (["52 ", "52A", "52B", "53 "], [0, 1, 2, 3], "AGKW", [1, 2, 3, 4]),
        (["52B", "52A", "52 ", "53 "], [0, 1, 2, 3], "AGKW", [1, 2, 3, 4]),
        # numbers that jump, stand still or start again where the chain goes on
        (["1 ", "2 ", "90 ", "91 "], [0, 1, 2, 3], "AGKW", [1, 2, 3, 4]),
        (["8 ", "9 ", "1 ", "2 "], [0, 1, 2, 3], "AGKW", [1, 2, 3, 4]),
        # a gap
        (["1 ", "2 ", "5 ", "6 "], [0, 1, 4, 5], "AGXXKW", [1, 2, 5, 6]),
        (["-5 ", "-4 ", "-1 ", "0 "], [0, 1, 4, 5], "AGXXKW", [1, 2, 5, 6]),
        # numbers beyond 9,999 in hybrid-36
        (["9999 ", "A000 ", "A001 ", "A002 "], [0, 1, 2, 3], "AGKW", [1, 2, 3, 4]),
        (["9998 ", "9999 ", "A002 ", "A003 "], [0, 1, 4, 5], "AGXXKW", [1, 2, 5, 6]),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_numbers_without_a_sequence(numbers, x, sequence, places, tmp_path):
    (tmp_path / "x.pdb").write_text("\n".join(trace(*zip(FOUR, numbers, x))))
    chain = read_chain(tmp_path / "x.pdb")
    assert (chain.sequence, resolved(chain)) == (sequence, places)
    np.testing.assert_allclose(chain.ca[np.array(places) - 1, 0], 3.8 * np.array(x), atol=1e-3)


@pytest.mark.parametrize(
    ("numbers", "x", "places"),
    [
        (["1 ", "2 ", "5 ", "6 "], [0, 1, 4, 5], [1, 2, 5, 6]),
        # the first glycine is missing: a bond says that the last one is there
        (["1 ", "4 ", "5 ", "6 "], [0, 3, 4, 5], [1, 4, 5, 6]),
        (["7 ", "8 ", "9 ", "10 "], [0, 3, 4, 5], [1, 4, 5, 6]),
        (["7 ", "8 ", "9 ", "10 "], [0, 1, 4, 5], [1, 2, 5, 6]),
        # the numbers say the middle one
        (["1 ", "3 ", "5 ", "6 "], [0, 2, 4, 5], [1, 3, 5, 6]),
        # numbers that start again at the gap
        (["7 ", "8 ", "1 ", "2 "], [0, 1, 4, 5], [1, 2, 5, 6]),
    ],
)
def test_numbers_and_bonds_in_a_sequence(numbers, x, places, tmp_path):
    (tmp_path / "x.pdb").write_text("\n".join([STATED, *trace(*zip(FOUR, numbers, x))]))
    chain = read_chain(tmp_path / "x.pdb")
    assert (chain.sequence, resolved(chain)) == ("AGGGKW", places)


def test_a_target_may_differ_from_its_deposited_sequence(tmp_path):
    "A task keeps the deposited sequence, and with it the chain is read again."
    text = (CASES / "s_gap_seqres.pdb").read_text()
    (tmp_path / "x.pdb").write_text(text.replace("PHE A  14", "LEU A  14"))
    with pytest.warns(UserWarning, match="LEU A14 is F"):
        (row,) = read_contacts(tmp_path, "test").table.itertuples()
    with pytest.warns(UserWarning, match="LEU A14 is F"):
        chain = read_chain(row.target, sequence=row.sequence)
    assert (chain.sequence, len(resolved(chain))) == (SEQUENCE, 18)


def test_what_is_bound_or_dissolved_is_no_residue(tmp_path):
    lines = trace(("ALA", "1 ", 0), ("MSE", "2 ", 1), ("GLY", "3 ", 2))
    lines[1] = lines[1].replace("ATOM  ", "HETATM")
    others = [
        line_of("HOH", "4 ", 60, record="HETATM", atom="O"),
        line_of(" CA", "5 ", 64, record="HETATM"),
        line_of("GLU", "6 ", 80, record="HETATM"),
        line_of("HEM", "7 ", 7.6, record="HETATM", atom="FE"),
    ]
    (tmp_path / "x.pdb").write_text("\n".join(lines + others))
    with pytest.warns(UserWarning) as caught:
        chain = read_chain(tmp_path / "x.pdb")
    said = " ".join(str(warning.message) for warning in caught)
    assert chain.sequence == "AMG"
    assert "GLU A6" in said and "MSE as M" in said and "HOH" not in said


def test_two_amino_acids_at_one_place_are_said(tmp_path):
    lines = trace(("ALA", "1 ", 0), ("GLY", "3 ", 2))
    mixed = [
        line_of("SER", "2 ", 3.8, alternate="A", occupancy=0.4),
        line_of("PRO", "2 ", 3.9, alternate="B", occupancy=0.6),
    ]
    (tmp_path / "x.pdb").write_text("\n".join([lines[0], *mixed, lines[1]]))
    with pytest.warns(UserWarning, match="a place has SER and PRO; .* is PRO A2"):
        assert read_chain(tmp_path / "x.pdb").sequence == "APG"


def test_a_residue_that_nobody_knows_is_kept_in_a_trace(tmp_path):
    (tmp_path / "x.pdb").write_text(
        "\n".join(trace(("ALA", "1 ", 0), ("QQ7", "2 ", 1), ("GLY", "3 ", 2)))
    )
    with pytest.warns(UserWarning, match="QQ7 as X"):
        assert read_chain(tmp_path / "x.pdb").sequence == "AXG"


def test_names_of_chains_heed_case(tmp_path):
    lines = trace(("ALA", "1 ", 0), chain="A") + trace(("GLY", "1 ", 9), chain="a")
    (tmp_path / "x.pdb").write_text("\n".join(lines))
    assert [read_chain(tmp_path / "x.pdb", name).sequence for name in "Aa"] == ["A", "G"]


@pytest.mark.parametrize("between", ["TER", "END", None])
@pytest.mark.filterwarnings("ignore")
def test_two_chains_without_names(between, tmp_path):
    first = trace(("ALA", "1 ", 0), ("GLY", "2 ", 1), chain=" ")
    second = trace(("LYS", "1 ", 20), ("TRP", "2 ", 21), chain=" ")
    lines = [*first, between, *second] if between else first + second
    (tmp_path / "x.pdb").write_text("\n".join(lines))
    assert [read_chain(tmp_path / "x.pdb", name).sequence for name in "12"] == ["AG", "KW"]


def test_files_put_together_keep_all_chains(tmp_path):
    lines = trace(("ALA", "1 ", 0), ("GLY", "2 ", 1))
    moved = trace(("LYS", "1 ", 20), ("TRP", "2 ", 21))
    (tmp_path / "x.pdb").write_text("\n".join([*lines, "END", *moved, "END"]))
    with pytest.warns(UserWarning, match="'A', are told apart by TER as A, A2"):
        assert read_chain(tmp_path / "x.pdb", "A2").sequence == "KW"


ENDINGS = st.sampled_from([".pdb", ".ent.gz", ".cif", ".bcif", ".cif.gz"])


def gives_chains_or_a_sentence(path: Path) -> None:
    "Read a file that may be anything."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            chains = split_chains(read_atoms(path))
            for name in chains:
                assert len(read_chain(path, name)) > 0
        except CarpError as error:
            assert path.name in str(error) and "\n" not in str(error)


@few
@given(data=st.binary(max_size=400), ending=ENDINGS)
def test_any_bytes_are_chains_or_a_sentence(data, ending, tmp_path):
    path = tmp_path / f"x{ending}"
    path.write_bytes(data)
    gives_chains_or_a_sentence(path)


@few
@given(data=st.data())
def test_a_damaged_file_gives_chains_or_a_sentence(data, tmp_path):
    name = data.draw(st.sampled_from(sorted(p.name for p in CASES.glob("s_*.pdb"))))
    text = bytearray((CASES / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 200))
        text[start : start + length] = data.draw(st.binary(max_size=12))
    path = tmp_path / name
    path.write_bytes(bytes(text))
    gives_chains_or_a_sentence(path)


MMCIF = """data_x
loop_
_atom_site.label_atom_id
_atom_site.label_comp_id
_atom_site.label_asym_id
_atom_site.label_entity_id
_atom_site.label_seq_id
_atom_site.Cartn_x
_atom_site.Cartn_y
_atom_site.Cartn_z
CA MET A 1 2 0.0 0.0 0.0
CA LYS A 1 3 3.8 0.0 0.0
#
loop_
_entity_poly_seq.entity_id
_entity_poly_seq.num
_entity_poly_seq.mon_id
1 1 GLY
1 2 MET
1 3 LYS
"""


def test_a_number_that_no_protein_has_is_refused(tmp_path):
    (tmp_path / "x.cif").write_text(MMCIF.replace("1 3 LYS", "1 3000000000 LYS"))
    with pytest.raises(CarpError, match="numbers a residue 3,000,000,000"):
        read_chain(tmp_path / "x.cif")


def test_an_mmcif_file_of_few_columns(tmp_path):
    (tmp_path / "x.cif").write_text(MMCIF)
    chain = read_chain(tmp_path / "x.cif")
    assert (chain.sequence, resolved(chain)) == ("GMK", [2, 3])


TWO_NAMES = """data_x
loop_
_atom_site.group_PDB
_atom_site.label_atom_id
_atom_site.label_comp_id
_atom_site.label_asym_id
_atom_site.label_entity_id
_atom_site.label_seq_id
_atom_site.auth_asym_id
_atom_site.auth_seq_id
_atom_site.Cartn_x
_atom_site.Cartn_y
_atom_site.Cartn_z
ATOM CA MET A 1 2 H 101 0.0 0.0 0.0
ATOM CA LYS A 1 3 H 102 3.8 0.0 0.0
ATOM CA TRP B 1 1 A -7 50.0 0.0 0.0
ATOM CA MET B 1 2 A -6 53.8 0.0 0.0
ATOM CA GLY C 2 1 L 5 80.0 0.0 0.0
HETATM O HOH D . . L 301 90.0 0.0 0.0
"""


@pytest.mark.parametrize(
    ("name", "sequence", "places"),
    [
        ("H", "XMK", [2, 3]),
        # the author's name goes first: another chain is A to him
        ("A", "WM", [1, 2]),
        ("B", "WM", [1, 2]),
        ("C", "G", [1]),
        ("L", "G", [1]),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_chain_of_mmcif_has_two_names(name, sequence, places, tmp_path):
    (tmp_path / "x.cif").write_text(TWO_NAMES)
    chain = read_chain(tmp_path / "x.cif", name)
    assert (chain.sequence, resolved(chain)) == (sequence, places)
    with pytest.raises(CarpError, match="has no chain 'D'; its chains are A, H, L"):
        read_chain(tmp_path / "x.cif", "D")


@pytest.mark.parametrize("ending", [".pdb", ".ENT", ".cif", ".cif.gz", ".mmcif"])
@pytest.mark.filterwarnings("ignore")
def test_a_text_file_is_read_by_its_content(ending, tmp_path):
    for text, name in ((TWO_NAMES, "H"), ((CASES / "s_two.pdb").read_text(), "B")):
        (tmp_path / f"x{ending}").write_text(text)
        assert len(read_chain(tmp_path / f"x{ending}", name)) in (3, 22)


@few
@given(start=st.integers(0, len(MMCIF)), length=st.integers(0, 60), new=st.text(max_size=5))
def test_a_damaged_mmcif_file_gives_chains_or_a_sentence(start, length, new, tmp_path):
    path = tmp_path / "x.cif"
    path.write_text(MMCIF[:start] + new + MMCIF[start + length :], encoding="utf-8")
    gives_chains_or_a_sentence(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "its first model has no atoms"),
        ("<!DOCTYPE html><html>404</html>", "its first model has no atoms"),
        ("\0\x01\x7f" * 50, "its first model has no atoms"),
        ("data_x\nloop_\n_atom_site.id\n", "x.pdb"),
        ("data_x\nloop_\n_atom_site.id\n_atom_site.Cartn_x\n1\n", "x.pdb"),
        ("MODEL        1\nENDMDL\n", "its first model has no atoms"),
        ("ATOM      1  CA  GLY A   1      11.0", "line 1"),
        ("HETATM    1  O   HOH A   1       1.000   1.000   1.000", "no amino acids"),
    ],
)
def test_bad_files_are_one_sentence(text, sentence, tmp_path):
    (tmp_path / "x.pdb").write_text(text)
    with pytest.raises(CarpError, match=sentence):
        read_chain(tmp_path / "x.pdb")


def test_a_chain_that_is_not_there_names_those_that_are():
    with pytest.raises(CarpError, match="has no chain 'C'; its chains are A, B"):
        read_chain(CASES / "s_two.pdb", "C")
    with pytest.raises(CarpError, match="do not fit the sequence of 3"):
        read_chain(CASES / "s_plain.pdb", sequence="MKT")
