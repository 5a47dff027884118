"""Every structure file that a biologist has: the right residues at the right places, or one sentence."""

import gzip
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from biotite.structure.io.pdbx import BinaryCIFFile, CIFFile
from fetch_biopython_structures import FOLDER
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carp_nb.atoms import read_atoms, split_chains
from carp_nb.coordinates import placed_chain, read_chain
from carp_nb.files import CarpError
from carp_nb.tasks import read_contacts

CASES = Path(__file__).parent / "cases"
SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQ"
few = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def resolved(chain) -> list[int]:  # from 1
    return (np.flatnonzero(chain.resolved) + 1).tolist()


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
WITHOUT_ATOMS = ("1MOM_min", "4Q9R_min")  # only headers
needs_biopython = pytest.mark.skipif(
    not STRUCTURES, reason="python tests/fetch_biopython_structures.py has not been run"
)


def stated_places(path: Path) -> dict[str, dict[int, np.ndarray]]:
    "Cα of the first model by chain and label_seq_id, read without the reader under test."
    data = path.read_bytes()
    if path.suffix == ".gz":
        file = BinaryCIFFile.read(io.BytesIO(gzip.decompress(data)))
    else:
        file = CIFFile.read(io.StringIO(data.decode()))
    site = {name: column.as_array(str).tolist() for name, column in file.block["atom_site"].items()}
    chains: dict[str, dict[int, np.ndarray]] = {}
    fullest: dict[tuple, float] = {}
    amino = read_names(file)
    for i, number in enumerate(site["label_seq_id"]):
        is_first = site["pdbx_PDB_model_num"][i] == site["pdbx_PDB_model_num"][0]
        is_ca = site["label_atom_id"][i] == "CA" and number.isdigit()
        if not is_first or not is_ca or site["label_entity_id"][i] not in amino:
            continue
        key = (site["auth_asym_id"][i], int(number))
        occupancy = float(site["occupancy"][i])
        if occupancy > fullest.get(key, -1):
            fullest[key] = occupancy
            place = [float(site[f"Cartn_{axis}"][i]) for axis in "xyz"]
            chains.setdefault(key[0], {})[key[1]] = np.array(place)
    return chains


def read_names(file) -> set[str]:
    "The entities that are proteins; all of a file that does not say."
    poly = file.block.get("entity_poly")
    if poly is None:
        return set(file.block["atom_site"]["label_entity_id"].as_array(str).tolist())
    columns = (poly[name].as_array(str).tolist() for name in ("entity_id", "type"))
    return {entity for entity, kind in zip(*columns) if "polypeptide" in kind}


def check_places(path: Path, chain: str, places: dict[int, np.ndarray]) -> None:
    "A chain has its residues where the places are stated."
    found = read_chain(path, chain)
    assert (np.flatnonzero(np.isfinite(found.ca).all(1)) + 1).tolist() == sorted(places)
    for place, xyz in places.items():
        np.testing.assert_allclose(found.ca[place - 1], xyz, atol=2e-3)


@needs_biopython
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", STRUCTURES, ids=lambda path: path.name)
def test_places_are_those_of_label_seq_id(path):
    if path.stem in WITHOUT_ATOMS:
        with pytest.raises(CarpError, match="it has no atoms"):
            read_atoms(path)
        return
    chains = stated_places(path)
    # two chains of 1SSU_mod have no Cα
    assert set(chains) <= set(split_chains(read_atoms(path)))
    for chain, places in chains.items():
        check_places(path, chain, places)


@needs_biopython
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["1A8O", "1LCD", "2BEG", "2XHE"])
def test_a_pdb_file_has_the_places_of_its_mmcif_file(name):
    for chain, places in stated_places(FOLDER / f"{name}.cif").items():
        check_places(FOLDER / f"{name}.pdb", chain, places)


def as_pdb(path: Path, chain: str) -> str:
    "A chain of an mmCIF file as PDB: SEQRES, the author's numbers, insertion codes, all atoms."
    block = CIFFile.read(path).block
    site = {name: column.as_array(str).tolist() for name, column in block["atom_site"].items()}
    names = {n: column.as_array(str).tolist() for n, column in block["entity_poly_seq"].items()}
    lines = []
    entities = set()
    for i, number in enumerate(site["label_seq_id"]):
        is_first = site["pdbx_PDB_model_num"][i] == site["pdbx_PDB_model_num"][0]
        if not is_first or not number.isdigit() or site["auth_asym_id"][i] != chain:
            continue
        entities.add(site["label_entity_id"][i])
        alternate = site["label_alt_id"][i].replace(".", " ")
        code = site["pdbx_PDB_ins_code"][i].replace("?", " ").replace(".", " ")
        xyz = "".join(f"{float(site[f'Cartn_{axis}'][i]):8.3f}" for axis in "xyz")
        lines.append(
            f"{site['group_PDB'][i]:6}{i % 99999:5d} {site['label_atom_id'][i]:^4.4}{alternate}"
            f"{site['label_comp_id'][i]:>3} {chain}{int(site['auth_seq_id'][i]):4d}{code}   {xyz}"
            f"{float(site['occupancy'][i]):6.2f}  0.00          {site['type_symbol'][i]:>2}"
        )
    places: dict[int, str] = {}
    for entity, number, name in zip(names["entity_id"], names["num"], names["mon_id"]):
        if entity in entities:
            places.setdefault(int(number), name)
    residues = list(places.values())
    seqres = [
        f"SEQRES {k // 13 + 1:3d} {chain} {len(residues):4d}  {' '.join(residues[k : k + 13])}"
        for k in range(0, len(residues), 13)
    ]
    return "\n".join([*seqres, *lines, "TER", "END"])


@needs_biopython
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", STRUCTURES, ids=lambda path: path.name)
def test_seqres_numbers_and_bonds_give_the_places_of_label_seq_id(path, tmp_path):
    if (
        path.stem in (*WITHOUT_ATOMS, "7CFN_aligned", "1SSU_mod", "a_structure")
        or path.suffix == ".gz"
    ):
        pytest.skip("has no atoms, no sequence, or is the packed copy of another file")
    if "entity_poly_seq" not in CIFFile.read(path).block:
        pytest.skip("lists no residues")
    for chain, places in stated_places(path).items():
        (tmp_path / "x.pdb").write_text(as_pdb(path, chain))
        check_places(tmp_path / "x.pdb", chain, places)


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


def test_an_mmcif_file_of_few_columns(tmp_path):
    (tmp_path / "x.cif").write_text(MMCIF)
    chain = read_chain(tmp_path / "x.cif")
    assert (chain.sequence, resolved(chain)) == ("GMK", [2, 3])


@few
@given(start=st.integers(0, len(MMCIF)), length=st.integers(0, 60), new=st.text(max_size=5))
def test_a_damaged_mmcif_file_gives_chains_or_a_sentence(start, length, new, tmp_path):
    path = tmp_path / "x.cif"
    path.write_text(MMCIF[:start] + new + MMCIF[start + length :], encoding="utf-8")
    gives_chains_or_a_sentence(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
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
