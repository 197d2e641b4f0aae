"""Section 4: the recorded numbers, what holds, and what does not hold as printed."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from bench import theory
from tests.golden_files import cases, tolerance

NAME = "theory_section4"


def problem(case: dict[str, Any]) -> theory.Problem:
    inputs, hyper = case["inputs"], case["hyper"]
    arrays = [np.array(inputs[name], dtype=np.float64) for name in ("Phi", "Y", "W0", "W_init")]
    return theory.Problem(*arrays, ridge=hyper["lambda"], time=hyper["T"], rounds=hyper["rounds"])


def computed(analysis: theory.Analysis) -> dict[str, Any]:
    """Our numbers under the file's names."""
    parts = analysis.parts
    return {
        "Z_singular_values": analysis.sigma,
        "w_t0_iterated_ridge": analysis.iterated,
        "w_t0_lemma1_closed_form": analysis.closed_form,
        "max_abs_difference": analysis.lemma_difference,
        "max_abs_ridge_gradient": analysis.ridge_gradient,
        "training_outputs_f_t": analysis.outputs,
        "w_tT_after_gradient_flow": analysis.tuned,
        "max_abs_difference_to_rk4": analysis.flow_difference,
        "G1": parts.g1,
        "G2": parts.g2,
        "B": parts.b,
        "psi1": parts.psi1,
        "zeta_this_training_set": parts.zeta,
        "psi": parts.psi,
        "exact_norm_w_tT": analysis.norms,
        "exact_distance_to_W_init": analysis.distances,
        "supremum_of_distance_over_winit_of_this_norm": analysis.suprema,
    }


FLAGS = {"psi_strictly_decreasing", "printed_bound_holds_per_round", "exact_norm_strictly_decreasing"}


def margin(values: np.ndarray) -> float:
    """What is not told apart from rounding among these values."""
    allowed = tolerance(NAME)
    return allowed["atol"] + allowed["rtol"] * float(np.abs(values).max())


@pytest.mark.golden
def test_every_recorded_number() -> None:
    for case in cases(NAME):
        analysis = theory.analyse(problem(case))
        ours, outputs = computed(analysis), case["outputs"]
        assert outputs.keys() == ours.keys() | FLAGS, case["name"]
        for name, value in ours.items():
            message = f"{case['name']}: {name}"
            np.testing.assert_allclose(value, np.array(outputs[name]), **tolerance(NAME), err_msg=message)


@pytest.mark.golden
def test_every_recorded_flag() -> None:
    """Flags are compared where they do not hang on rounding: a bound that is met exactly, values that stay the same."""
    for case in cases(NAME):
        analysis, outputs = theory.analyse(problem(case), integrate=False), case["outputs"]
        psi, norms, slack = analysis.parts.psi, analysis.norms, margin(analysis.suprema)
        decided = np.abs(analysis.suprema - psi) > slack
        recorded = np.array(outputs["printed_bound_holds_per_round"])
        assert np.array_equal(np.array(analysis.bound_holds)[decided], recorded[decided]), case["name"]
        for name, values in (("psi_strictly_decreasing", psi), ("exact_norm_strictly_decreasing", norms)):
            if not (np.abs(np.diff(values)) <= slack).any():
                assert theory.strictly_decreasing(values) == outputs[name], (case["name"], name)


@pytest.mark.golden
def test_a_teacher_in_the_null_space_is_gone_after_one_round() -> None:
    null_space = [case for case in cases(NAME) if theory.analyse(problem(case), integrate=False).parts.psi1[0] < 1e-20]
    problems = [problem(case) for case in null_space] + [theory.example("null_space", seed) for seed in range(3)]
    for example in problems:
        analysis = theory.analyse(example, integrate=False)
        assert np.abs(analysis.iterated[1:]).max() < 1e-12
        assert analysis.parts.b > 0
        assert np.ptp(analysis.parts.psi[1:]) < margin(analysis.parts.psi)
        assert not theory.strictly_decreasing(analysis.parts.psi, margin(analysis.parts.psi))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["random", "aligned", "opposed", "null_space", "hand"])
def test_what_holds_for_every_teacher(kind: str, seed: int) -> None:
    example = theory.example(kind, seed)
    analysis = theory.analyse(example)
    assert analysis.lemma_difference < 1e-12
    assert analysis.ridge_gradient < 1e-12
    assert analysis.flow_difference < 1e-10
    assert (analysis.distances <= analysis.suprema + 1e-12).all()
    assert (analysis.suprema <= analysis.parts.triangle + 1e-12).all()
    if kind != "null_space":
        assert theory.strictly_decreasing(analysis.parts.psi)
        assert theory.strictly_decreasing(analysis.parts.triangle)


def test_every_eigenspace_shrinks_by_its_own_factor() -> None:
    example = theory.example("random")
    examples, outputs = example.labels.shape
    design = theory.design_matrix(example.features, outputs)
    u, sigma, _ = theory.spectrum(design)
    start = theory.vectorise(example.teacher)
    left = u.T @ theory.ridge_rounds(design, start, examples, example.ridge, 3)[3]
    expected = theory.shrinkage(sigma, examples, example.ridge, 1) ** 3 * (u.T @ start)
    np.testing.assert_allclose(left, expected, rtol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_what_does_not_hold_as_printed(seed: int) -> None:
    aligned = theory.analyse(theory.example("aligned", seed), integrate=False)
    assert not any(aligned.bound_holds)
    opposed = theory.analyse(theory.example("opposed", seed), integrate=False)
    assert theory.strictly_decreasing(opposed.parts.psi)
    assert (np.diff(opposed.suprema) > 0).all()


def test_the_counter_example_by_hand() -> None:
    hand = theory.analyse(theory.example("hand"))
    assert hand.norms[0] == pytest.approx(1.0)
    assert hand.parts.zeta[0] == pytest.approx(((1 - np.exp(-1)) ** 2 + np.exp(-2)) ** 0.5)
    assert not hand.bound_holds[0]


def test_features_that_depend_on_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="full column rank"):
        theory.spectrum(theory.design_matrix(np.ones((4, 2)), 1))
    with pytest.raises(ValueError, match="full column rank"):
        theory.spectrum(theory.design_matrix(np.eye(3)[:2], 1))


def test_the_command_says_what_holds_and_what_does_not() -> None:
    script = (
        "import sys; from bench.theory import main; main([]); assert not {'torch', 'baselines'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    holds, _, fails = done.stdout.partition("WHAT DOES NOT HOLD AS PRINTED")
    assert "Lemma 1 equals the iterated ridge solutions" in holds
    for said in ("Cross terms are missing", "need not fall", "constant from round 1", "triangle inequality", "0.731"):
        assert said in fails


@pytest.mark.parametrize("wrong", [["--rounds", "0"], ["--seed", "-1"], ["--rounds", "x"]])
def test_the_command_refuses(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        theory.main(wrong)
    assert refusal.value.code == 2
    assert "--" in capsys.readouterr().err
