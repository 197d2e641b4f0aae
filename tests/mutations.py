"""Planted mistakes that the tests must notice: `python tests/mutations.py`.

Each is one change of one file. A copy of the checkout gets them one at a time, and the tests named with a mistake must
fail there; before that they must pass. Exit status 1 if a mistake survives or its place is no longer found.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CHARTS = "tests/figures/test_charts.py"
LABELS = "tests/baselines/test_label_regularization.py"
LAYOUT = "tests/tables/test_layout.py"
PREDICTIONS = "tests/tables/test_predictions.py"
QUANTITIES = "tests/tables/test_quantities.py"
LEFT_OUT = "tests/planning/test_left_out.py"
SWEEP = "tests/tables/test_mini_sweep.py"
VERDICTS = "tests/tables/test_verdicts.py"


class Mutation(NamedTuple):
    """A mistake: `original` occurs exactly once in `file`; `tests` are the ids that catch it."""

    name: str
    file: str
    original: str
    wrong: str
    tests: tuple[str, ...]


MUTATIONS = (
    # --------------------------------------------------------------------------------------- processes, ranks, seeds
    Mutation(
        "how a process ended is lost where a shell ignored SIGCHLD",
        "bench/cli.py",
        "signal.signal(signal.SIGCHLD, signal.SIG_DFL)",
        "pass",
        ("tests/test_cli.py::test_how_a_process_ended_is_seen_where_a_shell_ignored_sigchld",),
    ),
    Mutation(
        "imports that never end are waited for",
        "bench/training/fork_server.py",
        "time.monotonic() - self._began > IMPORT_SECONDS",
        "False",
        ("tests/training/test_fork_server.py::test_a_server_whose_imports_never_end_is_an_error",),
    ),
    Mutation(
        "ranks of equal means differ",
        "bench/tables/compare.py",
        "(better + (equal + 1) / 2)",
        "(better + equal)",
        ("tests/tables/test_compare.py::test_average_ranks_share_ties_and_leave_out_incomplete_rows",),
    ),
    Mutation(
        "a recipe that reads the seed is asked once",
        "bench/planning/cell.py",
        "        if self.any_seed == ANY_SEED:\n            raise _SeedIsRead\n",
        "",
        ("tests/test_scale.py::test_a_recipe_that_reads_the_seed_is_asked_for_each",),
    ),
    # --------------------------------------------------------------------------------------- strangers' methods
    Mutation(
        "a loss may change its batch",
        "bench/training/loop.py",
        "if self._versions(batch) != before:",
        "if False:",
        ("tests/training/test_fit.py::test_an_objective_that_changes_what_others_read_is_refused",),
    ),
    Mutation(
        "the labels of the training set are not looked at",
        "bench/training/loop.py",
        "shared = (batch, self._context.training_set.labels)",
        "shared = batch",
        ("tests/training/test_fit.py::test_an_objective_that_changes_what_others_read_is_refused",),
    ),
    Mutation(
        "an optimiser may leave weights out",
        "bench/training/loop.py",
        "if trained != expected:",
        "if trained - expected:",
        ("tests/training/test_loop.py::test_an_optimiser_that_would_leave_weights_as_they_are_is_refused",),
    ),
    Mutation(
        "a rate is blamed before the first update",
        "bench/training/loop.py",
        "if done > 1 else FROM_THE_START",
        "if done > 0 else FROM_THE_START",
        ("tests/training/test_loop.py::test_no_learning_rate_is_blamed_before_the_first_update",),
    ),
    Mutation(
        "a setting needs no type",
        "bench/specs/spec.py",
        "if isinstance(value, _DEFAULTS) and not constant",
        "if isinstance(value, str) and not constant",
        ("tests/specs/test_specs.py::test_a_setting_without_a_type_is_refused_where_the_class_is_declared",),
    ),
    Mutation(
        "a tensor on the host is recorded",
        "bench/check/host_graph.py",
        'if makes and kwargs.get("device") is None and result.dim() > 0:',
        'if makes and kwargs.get("device") is None and result.dim() > 9:',
        ("tests/training/test_graphs.py::test_what_cannot_be_recorded_is_computed_as_written",),
    ),
    Mutation(
        "a single number is refused in recorded steps",
        "bench/check/host_graph.py",
        'if makes and kwargs.get("device") is None and result.dim() > 0:',
        'if makes and kwargs.get("device") is None:',
        ("tests/training/test_graphs.py::test_what_keeps_to_the_rules_is_recorded",),
    ),
    Mutation(
        "a table is silent about failed cells",
        "bench/tables/table.py",
        "        *_failed(plan, store,",
        "        *_failed(plan, store, {cell.name for cell in plan.cells} or",
        ("tests/test_grid.py::test_a_failure_blocks_its_dependants_and_nothing_else",),
    ),
    Mutation(
        "weights of one's own that are missing are at hand",
        "bench/planning/catalogue.py",
        "self.checkpoints[name].refuse_missing()",
        "pass",
        ("tests/doctor/test_needs.py::test_nothing_is_said_of_the_size_of_weights_that_are_still_to_be_read",),
    ),
    Mutation(
        "a row cannot be named as in grid.rows",
        "bench/planning/plan.py",
        "cell.method + cell.name.removeprefix(cell.row)",
        "cell.name",
        ("tests/planning/test_cost.py::test_a_name_alone_means_all_its_cells",),
    ),
    Mutation(
        "the time left takes evaluation for nothing",
        "bench/launch/estimate.py",
        "self._whole.add(self._kinds[stage.key])",
        "pass",
        ("tests/launch/test_reporter.py::test_the_estimate_counts_the_evaluation_of_stages_that_ended",),
    ),
    Mutation(
        "a trained stage does not say that it is evaluated",
        "bench/launch/reporter.py",
        "return share == 1 and stage.evaluation is not None",
        "return False",
        ("tests/launch/test_reporter.py::test_a_stage_that_is_trained_says_that_it_is_evaluated",),
    ),
    # --------------------------------------------------------------------------------------- no wrong number
    Mutation(
        "status reads no record behind finished stages",
        "bench/monitor/states.py",
        "store.each(read, [stage for stage in behind if not stage.unprepared])",
        "list(behind)",
        ("tests/launch/test_again.py::test_plan_and_status_tell_of_all_that_rests_on_other_weights",),
    ),
    Mutation(
        "what a stage began with is judged one stage back",
        "bench/store/code.py",
        'if reason := own or next(behind, ""):',
        "if reason := own:",
        ("tests/launch/test_again.py::test_plan_and_status_tell_of_all_that_rests_on_other_weights",),
    ),
    Mutation(
        "a vocabulary has no ceiling",
        "bench/specs/architectures.py",
        '"pad_to_multiple_of", "vocabulary", "positions"',
        '"pad_to_multiple_of", "positions"',
        ("tests/specs/test_specs.py::test_no_whole_number_can_take_all_memory[LanguageModel.vocabulary]",),
    ),
    Mutation(
        "a decoder takes no memory",
        "bench/training/networks.py",
        "parameters += stage.backbone.least_decoder_parameters",
        "parameters += 0",
        ("tests/training/test_fit.py::test_a_decoder_that_no_memory_can_hold_is_refused_where_it_is_trained",),
    ),
    Mutation(
        "lines that the store leads to again are read all the same",
        "bench/tables/records.py",
        "same_lines = {line_of(record).encode(): record for record in expected.cells.values()} if lines else {}",
        "same_lines: dict[bytes, Record] = {}",
        ("tests/test_scale.py::test_lines_that_the_store_leads_to_again_are_not_read",),
    ),
    # ---------------------------------------------------------------------------------------- self-distillation
    Mutation(
        "distillation averages over features",
        "baselines/self_distillation.py",
        "return (student - teacher.detach()).square().sum(dim=-1).mean()",
        "return (student - teacher.detach()).square().mean()",
        ("tests/baselines/test_golden_losses.py::test_distillation",),
    ),
    Mutation(
        "student started from the teacher",
        "baselines/self_distillation.py",
        "        teacher=teacher,\n    )",
        "        teacher=teacher,\n        init=teacher,\n    )",
        ("tests/baselines/test_golden_end_to_end.py::test_the_recipe_makes_the_stages_of_the_algorithm",),
    ),
    Mutation(
        "student is the teacher of its own round",
        "baselines/self_distillation.py",
        "        teacher = self_distill(cell, teacher, round, mae_weight)",
        "        student = self_distill(cell, teacher, round, mae_weight)\n    teacher = student",
        ("tests/baselines/test_golden_end_to_end.py::test_the_recipe_makes_the_stages_of_the_algorithm",),
    ),
    Mutation(
        "weight of the MAE loss ignored",
        "bench/specs/objectives.py",
        "return Loss(self.weight * masked, ",
        "return Loss(masked, ",
        ("tests/training/test_loop.py::test_the_masked_loss_is_weighted",),
    ),
    Mutation(
        "teacher in train mode",
        "bench/training/networks.py",
        "    load_weights(model, store.weights(stage), parts(stage.objective))\n"
        "    return model.requires_grad_(False).eval()",
        "    load_weights(model, store.weights(stage), parts(stage.objective))\n"
        "    return model.requires_grad_(False).train()",
        ("tests/baselines/test_contract.py::test_teachers_are_frozen_and_without_dropout[kd-digits]",),
    ),
    Mutation(
        "twice the budget is once the budget",
        "baselines/tapt.py",
        "{name: times * value for",
        "{name: value for",
        ("tests/baselines/test_ablations.py::test_twice_the_budget_is_one_longer_schedule",),
    ),
    Mutation(
        "prediction matching in the other direction",
        "baselines/ablations.py",
        "log_softmax(student, dim=-1), log_softmax(teacher.detach(), dim=-1), reduction",
        "log_softmax(teacher.detach(), dim=-1), log_softmax(student, dim=-1), reduction",
        ("tests/baselines/test_ablations.py::test_predicted_words_are_compared_from_the_teachers_side",),
    ),
    # ---------------------------------------------------------------------------------------- masked auto-encoding
    Mutation(
        "biased variance in norm_pix",
        "bench/models/image.py",
        "keepdim=True, correction=1)",
        "keepdim=True, correction=0)",
        ("tests/baselines/test_golden_losses.py::test_masked_auto_encoding",),
    ),
    Mutation(
        "LayerScale forgotten in the last block",
        "bench/models/image.py",
        "output: Tensor = first + block.ls2(block.mlp(block.norm2(first)))",
        "output: Tensor = first + block.mlp(block.norm2(first))",
        ("tests/pretrained/test_image_encoders.py::test_an_encoder_of_transformers_computes_the_same",),
    ),
    Mutation(
        "registers shown to the decoder in place of patches",
        "bench/models/image.py",
        "encoded = torch.cat([encoded[:, :1], encoded[:, 1 + registers :]], dim=1)",
        "encoded = encoded[:, :-registers]",
        ("tests/pretrained/test_image_encoders.py::test_the_decoder_sees_the_patches_that_were_kept",),
    ),
    Mutation(
        "positions resampled by another library's rule",
        "bench/models/image.py",
        'antialias=method == "antialiased"',
        'antialias=method != "antialiased"',
        ("tests/pretrained/test_image_encoders.py::test_positions_are_resampled_as_timm_does",),
    ),
    Mutation(
        "reconstruction of all patches",
        "bench/models/image.py",
        "return (per_patch * removed).sum() / removed.sum()",
        "return per_patch.mean()",
        ("tests/baselines/test_golden_losses.py::test_masked_auto_encoding",),
    ),
    Mutation(
        "language modelling averaged per sequence",
        "bench/models/text.py",
        "        return masked_token_loss(self.masked_predictions(inputs, mask), mask.labels)",
        "        each = cross_entropy(self.masked_predictions(inputs, mask), mask.labels, reduction='none')\n"
        "        sequence = mask.positions // mask.input_ids.shape[1]\n"
        "        counts = torch.zeros(len(mask.input_ids)).index_add(0, sequence, mask.valid.float())\n"
        "        return (each / counts[sequence])[mask.valid].sum() / (counts > 0).sum().clamp(min=1)",
        ("tests/models/test_text_model.py::test_masked_loss_is_that_of_the_whole_network",),
    ),
    Mutation(
        "language modelling averaged over all tokens",
        "bench/models/text.py",
        "return total / (labels != NOT_SELECTED).sum().clamp(min=1)",
        "return total / labels.numel()",
        ("tests/baselines/test_golden_losses.py::test_masked_language_modelling",),
    ),
    Mutation(
        "a padding token is predicted from the last one",
        "bench/models/transformers_text.py",
        "    followed = present & pad(present[:, 1:], (0, 1), value=False)",
        "    followed = present & pad(torch.ones_like(present[:, 1:]), (0, 1), value=False)",
        ("tests/pretrained/test_transformers_text.py::test_next_tokens_are_selected_wherever_there_is_one",),
    ),
    Mutation(
        "GPT-2 is read at the last place of the batch",
        "bench/models/transformers_text.py",
        "attention_mask.sum(1) - 1]",
        "-1]",
        ("tests/pretrained/test_transformers_text.py::test_features_and_losses_are_the_librarys[gpt2]",),
    ),
    Mutation(
        "GPT-2's matrices stay (in, out)",
        "bench/pretrained/transformers_text.py",
        "tensor.T if name in turned else tensor",
        "tensor",
        ("tests/pretrained/test_transformers_text.py::test_mars_bounds_the_output_units_of_gpt2",),
    ),
    Mutation(
        "word embeddings pass for a matrix",
        "bench/interfaces/model.py",
        '                return "embedding"',
        '                return "matrix"',
        ("tests/pretrained/test_transformers_text.py::test_roles_and_depths[gpt2]",),
    ),
    # ---------------------------------------------------------------------------------------- RecAdam
    Mutation(
        "RecAdam pulls before the Adam update",
        "baselines/recadam_torch.py",
        "        torch._foreach_sub_(parameters, changes)\n"
        '        if not group["head"]:\n'
        "            ways = torch._foreach_sub(parameters, [self.anchors[parameter] for parameter in parameters])\n"
        '            torch._foreach_mul_(ways, group["pull"])\n'
        "            torch._foreach_sub_(parameters, ways)\n",
        '        if not group["head"]:\n'
        "            ways = torch._foreach_sub(parameters, [self.anchors[parameter] for parameter in parameters])\n"
        '            torch._foreach_mul_(ways, group["pull"])\n'
        "            torch._foreach_sub_(parameters, ways)\n"
        "        torch._foreach_sub_(parameters, changes)\n",
        ("tests/baselines/test_recadam.py::test_every_update_is_the_released_codes",),
    ),
    Mutation(
        "RecAdam adds eps to the corrected root",
        "baselines/recadam_torch.py",
        "torch._foreach_add_(denominators, self.eps)",
        "torch._foreach_add_(denominators, self.eps / 2)",
        ("tests/baselines/test_recadam.py::test_every_update_is_the_released_codes",),
    ),
    Mutation(
        "RecAdam scales the gradient instead of the update",
        "baselines/recadam_torch.py",
        'group["step_size"].fill_(scale * rate * task)',
        'group["step_size"].fill_(scale * rate)',
        ("tests/baselines/test_recadam.py::test_every_update_is_the_released_codes",),
    ),
    # ---------------------------------------------------------------------------------------- MARS
    Mutation(
        "MARS scales the whole matrix",
        "baselines/mars.py",
        "        distances = [_row_distances(way).reshape(-1, *[1] * (way.ndim - 1)) for way in moved]",
        "        distances = [_row_distances(way).max() for way in moved]",
        ("tests/baselines/test_mars.py::test_every_projection_is_the_released_codes",),
    ),
    Mutation(
        "MARS computes U + (W - U) inside the ball",
        "baselines/mars.py",
        "projected = [torch.where(far, new, old) for",
        "projected = [new for",
        ("tests/baselines/test_mars.py::test_what_is_inside_keeps_its_bits",),
    ),
    Mutation(
        "MARS after every second step",
        "bench/training/loop.py",
        "        if stage.constraint is not None:\n            with",
        "        if stage.constraint is not None and self._context.clock.step % 2:\n            with",
        ("tests/training/test_loop.py::test_constraints_apply_after_every_step",),
    ),
    # ---------------------------------------------------------------------------------------- R3F
    Mutation(
        "R3F halves the divergence",
        "baselines/r3f.py",
        "(log_p - log_q)).sum(dim=-1).mean()",
        "(log_p - log_q)).sum(dim=-1).mean() / 2",
        ("tests/baselines/test_r3f.py::test_the_divergence_and_its_gradients_are_the_released_codes",),
    ),
    Mutation(
        "R3F does not detach the noised embeddings",
        "baselines/r3f.py",
        "model.embed(batch.inputs).detach()",
        "model.embed(batch.inputs)",
        ("tests/baselines/test_r3f.py::test_the_noised_pass_teaches_everything_but_the_embeddings",),
    ),
    # ---------------------------------------------------------------------------------------- SupCon
    Mutation(
        "SupCon without T / T_base",
        "baselines/supcon.py",
        "return -(temperature / base_temperature) * of_positives.mean()",
        "return -of_positives.mean()",
        ("tests/baselines/test_supcon.py::test_the_loss_and_its_gradient_are_the_released_codes",),
    ),
    Mutation(
        "SupCon takes the mean inside the log",
        "baselines/supcon.py",
        "    of_positives = log_probability.masked_fill(~positive, 0.0).sum(dim=1) / positive.sum(dim=1).clamp(min=1)",
        "    inside = log_probability.exp().masked_fill(~positive, 0.0).sum(dim=1) / positive.sum(dim=1).clamp(min=1)\n"
        "    of_positives = inside.clamp(min=1e-300).log() * positive.any(dim=1)",
        ("tests/baselines/test_supcon.py::test_the_loss_and_its_gradient_are_the_released_codes",),
    ),
    Mutation(
        "SupCon contrasts an anchor with itself",
        "baselines/supcon.py",
        "others = similarity.masked_fill(itself, torch.finfo(similarity.dtype).min)",
        "others = similarity",
        ("tests/baselines/test_supcon.py::test_the_loss_and_its_gradient_are_the_released_codes",),
    ),
    # ---------------------------------------------------------------------------------------- label regularisation
    Mutation(
        "KD without the temperature squared",
        "baselines/label_regularization.py",
        "scale = temperature**2 if scale_by_temperature else 1.0",
        "scale = 1.0",
        (f"{LABELS}::test_the_defaults_are_the_textbooks",),
    ),
    Mutation(
        "KD averages over classes by default",
        "baselines/label_regularization.py",
        '    temperature: float = 2.0\n    kl_reduction: Reduction = "batchmean"',
        '    temperature: float = 2.0\n    kl_reduction: Reduction = "mean"',
        (f"{LABELS}::test_the_defaults_are_the_textbooks",),
    ),
    Mutation(
        "label smoothing spares the label by default",
        "baselines/label_regularization.py",
        '    epsilon: float = 0.1\n    spread: Literal["all", "others"] = "all"',
        '    epsilon: float = 0.1\n    spread: Literal["all", "others"] = "others"',
        (f"{LABELS}::test_the_defaults_are_the_textbooks",),
    ),
    Mutation(
        "virtual teacher spreads over all classes",
        "baselines/label_regularization.py",
        "others = (1 - correct_probability) / (classes - 1)",
        "others = (1 - correct_probability) / classes",
        (f"{LABELS}::test_losses_and_gradients_are_the_released_codes_and_their_options_the_alternatives",),
    ),
    Mutation(
        "the equal epsilon of label smoothing without the label's own share",
        "baselines/label_regularization.py",
        "return alpha * (1 - correct_probability) * classes / (classes - 1)",
        "return alpha * (1 - correct_probability)",
        (f"{LABELS}::test_the_hard_virtual_teacher_is_label_smoothing",),
    ),
    Mutation(
        "kd learns from a fine-tuning of its own in place of the row it names",
        "baselines/label_regularization.py",
        "        teacher = cell.row(teacher_row)\n    else:",
        "        teacher = finetune(cell)\n    else:",
        (f"{LABELS}::test_a_searched_row_on_another_backbone_teaches",),
    ),
    # ---------------------------------------------------------------------------------------- figures
    Mutation(
        "intervals of differences are too narrow",
        "bench/tables/compare.py",
        "stdtrit(freedom, (1 + LEVEL) / 2)",
        "stdtrit(freedom, (1 + 0.9) / 2)",
        (f"{CHARTS}::test_paired_differences_have_t_intervals",),
    ),
    Mutation(
        "stages that both rows share count as noise of their difference",
        "bench/tables/compare.py",
        "uses = Counter(stage for left, right in pairs for stage in left.stages ^ right.stages)",
        "uses = Counter(stage for left, right in pairs for stage in left.stages | right.stages)",
        (f"{CHARTS}::test_differences_are_conditional_where_one_row_alone_shares_stages_between_seeds",),
    ),
    Mutation(
        "the settings of a searched cell are those of its first candidate",
        "bench/tables/layout.py",
        'stage["spec"]["finals"][stage["search"]["chosen"]]',
        'stage["spec"]["finals"][0]',
        ("tests/tables/test_verdicts.py::test_settings_that_a_search_chose_decide_whether_a_cell_is_comparable",),
    ),
    Mutation(
        "a search with every seed trains its candidates with the first",
        "bench/planning/cell.py",
        'self.grid.base_seed if self.grid.search_seeds == "shared" else cell.any_seed',
        "self.grid.base_seed",
        ("tests/planning/test_search.py::test_a_search_with_every_seed_shares_nothing_between_seeds",),
    ),
    Mutation(
        "a target of float32 is judged on lines of bfloat16",
        "bench/speed/targets.py",
        "line = line_of(lines, subject, target.precision)",
        "line = line_of(lines, subject)",
        ("tests/speed/test_speed.py::test_a_target_of_a_precision_is_judged_on_lines_of_that_precision",),
    ),
    Mutation(
        "a backbone that one row alone starts from is not held against a difference",
        "bench/tables/comparison.py",
        'yield from (key for key in record["stages"] if key in stages)',
        'yield from (key for key in record["stages"] if key in stages and stages[key]["task"] == own["task"])',
        ("tests/tables/test_comparison.py::test_a_backbone_of_one_row_alone_makes_its_differences_conditional",),
    ),
    Mutation(
        "the legend of a searched grid does not say that validation examples occur in train",
        "bench/tables/grid_facts.py",
        '*(["validation"] if column in judged else [])',
        "*[]",
        ("tests/tables/test_tables.py::test_the_overlap_of_train_and_test_stands_in_the_legend",),
    ),
    Mutation(
        "of two rows of equal cost and number only the first is on the front",
        "bench/figures/charts.py",
        "other != (cost, loss) and other[0]",
        "other[0]",
        (f"{CHARTS}::test_costs_count_each_stage_once_and_find_the_front",),
    ),
    Mutation(
        "a row without all seeds is cheap, and on the front",
        "bench/figures/charts.py",
        'if point["n"] == point["planned"]]\n    costs_and_losses',
        'if point["n"]]\n    costs_and_losses',
        (f"{CHARTS}::test_costs_count_each_stage_once_and_find_the_front",),
    ),
    Mutation(
        "names between dollars are drawn as formulas",
        "bench/figures/draw.py",
        '"text.parse_math": False',
        '"text.parse_math": True',
        ("tests/figures/test_figures.py::test_names_stay_as_they_are",),
    ),
    Mutation(
        "shifted series do not count for the limits of their panel",
        "bench/figures/draw.py",
        "axes.update_datalim([(x, y) for x, y in values if x is not None and y is not None])",
        "pass",
        ("tests/figures/test_figures.py::test_all_points_and_bars_lie_within_their_panel",),
    ),
    # ---------------------------------------------------------------------------------------- theory
    Mutation(
        "Lemma 1 with the exponent on the numerator only",
        "bench/theory.py",
        "return (1 / (1 + examples * ridge / sigma**2)) ** round",
        "return 1**round / (1 + examples * ridge / sigma**2)",
        ("tests/test_theory.py::test_every_recorded_number",),
    ),
    # ---------------------------------------------------------------------------------------- the training loop
    Mutation(
        "wrong decay roles",
        "bench/specs/architectures.py",
        'return ("matrix", "norm") if labelled else ("matrix", "token")',
        'return ("matrix", "token") if labelled else ("matrix", "norm")',
        ("tests/baselines/test_golden_losses.py::test_weight_decay_groups",),
    ),
    Mutation(
        "warm-up off by one",
        "bench/training/loop.py",
        "return peak * step / max(1, warmup_steps)",
        "return peak * (step + 1) / max(1, warmup_steps)",
        ("tests/baselines/test_golden_losses.py::test_learning_rates",),
    ),
    Mutation(
        "clipping skipped",
        "bench/training/loop.py",
        "        if stage.schedule.clip_norm is not None:",
        "        if False:",
        ("tests/training/test_loop.py::test_gradients_are_clipped_by_their_global_norm",),
    ),
    Mutation(
        "micro-batches are not scaled",
        "bench/interfaces/hooks.py",
        "return Loss(self.total * share, ",
        "return Loss(self.total, ",
        ("tests/training/test_loop.py::test_accumulation_changes_nothing_but_rounding",),
    ),
    Mutation(
        "checkpoint without optimiser state",
        "bench/training/loop.py",
        '    optimizer.load_state_dict({"state": content["optimizer"], "param_groups": groups})\n',
        "",
        ("tests/training/test_loop.py::test_stopping_at_any_step_and_resuming_gives_the_same_bits",),
    ),
    Mutation(
        "checkpoint without the objective's module",
        "bench/training/loop.py",
        'state.module.load_state_dict(content[f"{name}_module"])',
        "pass",
        ("tests/baselines/test_contract.py::test_an_interruption_after_any_step_changes_no_bit[supcon-digits]",),
    ),
    Mutation(
        "activity of what a search did not choose",
        "bench/tables/records.py",
        "    if isinstance(stage, Selected):\n        trained =",
        "    if stage.key == '':\n        trained =",
        ("tests/planning/test_search.py::test_what_a_search_tried_and_did_not_choose_is_no_activity_of_the_cell[1]",),
    ),
    Mutation(
        "lines for what the command line leaves out",
        "bench/planning/left_out.py",
        "if isinstance(binding.value, tuple) and axis not in own else ()",
        "if isinstance(binding.value, tuple) and not own else ()",
        (f"{LEFT_OUT}::test_a_file_that_replaces_tasks_may_have_lines_for_rows_that_set_leaves_out",),
    ),
    Mutation(
        "order seed without epoch",
        "bench/training/batches.py",
        'self._seed("order", epoch)',
        'self._seed("order")',
        ("tests/training/test_batches.py::test_every_epoch_sees_every_example_once_in_its_own_order",),
    ),
    Mutation(
        "mask seed without step",
        "bench/training/batches.py",
        "self._seed(name, step)",
        "self._seed(name)",
        ("tests/training/test_batches.py::test_a_step_is_a_pure_function_of_seed_and_step",),
    ),
    Mutation(
        "dropout seed without step",
        "bench/training/loop.py",
        'stream(self._stage.seed, self._stage.name, "step", step, number)',
        'stream(self._stage.seed, self._stage.name, "step", number)',
        ("tests/training/test_loop.py::test_dropout_is_drawn_anew_at_every_step",),
    ),
    # ---------------------------------------------------------------------------------------- recorded steps, devices
    Mutation(
        "the learning rate is no tensor, so a recording freezes it",
        "bench/specs/stage.py",
        '                group["lr"].fill_(rate)',
        '                group["lr"] = torch.full_like(group["lr"], rate)',
        ("tests/training/test_graphs.py::test_recorded_steps_give_the_same_bits[finetune]",),
    ),
    Mutation(
        "a recording does not read its inputs",
        "bench/training/graphs.py",
        "            target.copy_(source, non_blocking=True)",
        "            pass",
        ("tests/training/test_graphs.py::test_recorded_steps_give_the_same_bits[masked]",),
    ),
    Mutation(
        "losses of a recording are overwritten by the next",
        "bench/training/graphs.py",
        "return {name: loss.clone() for name, loss in self.losses.items()}",
        "return self.losses",
        ("tests/training/test_graphs.py::test_losses_are_those_of_their_own_step",),
    ),
    Mutation(
        "a recording whose loss reads the step is kept",
        "bench/training/graphs.py",
        "if self._clock.reads != reads:",
        "if False:",
        ("tests/training/test_graphs.py::test_what_cannot_be_recorded_is_computed_as_written",),
    ),
    Mutation(
        "gradients of a recording that failed are left",
        "bench/training/loop.py",
        "        self._optimizer.zero_grad(set_to_none=True)\n        losses = self._gradients(batch)\n",
        "        losses = self._gradients(batch)\n",
        ("tests/training/test_graphs.py::test_what_cannot_be_recorded_is_computed_as_written",),
    ),
    Mutation(
        "a checkpoint is written before late losses are read",
        "bench/training/loop.py",
        "        watch.settle()\n        _refuse_diverged(model, optimizer)\n        seconds = ",
        "        seconds = ",
        ("tests/training/test_loop.py::test_nothing_is_saved_or_finished_with_a_loss_that_is_no_number[3]",),
    ),
    Mutation(
        "float32 leaves TF32 on in convolutions",
        "bench/device.py",
        "products.allow_tf32 = convolutions.allow_tf32 = ",
        "products.allow_tf32 = ",
        ("tests/test_device.py::test_precision_and_determinism_hold_for_a_stage_and_are_put_back",),
    ),
    Mutation(
        "the smaller batch of texts is the longest ones",
        "bench/training/batches.py",
        "        whole = len(order) - len(order) % size\n",
        "        whole = len(order)\n",
        ("tests/training/test_batches.py::test_the_smaller_batch_holds_long_texts_no_more_often_than_by_chance",),
    ),
    Mutation(
        "a stage is tried alone while others use its device",
        "bench/launch/local.py",
        "            if not stages or any(worker.stage is not None for worker in workers):\n",
        "            if not stages:\n",
        ("tests/launch/test_local.py",),
    ),
    Mutation(
        "stages join one that has its device for itself",
        "bench/launch/local.py",
        "        reserved |= {worker.device for worker in self.alive if worker.alone}\n",
        "",
        ("tests/launch/test_local.py",),
    ),
    Mutation(
        "a device is given new stages while one waits to be alone on it",
        "bench/launch/local.py",
        "        reserved = {device for device, stages in self._crowded.items() if stages}\n",
        "        reserved = set()\n",
        ("tests/launch/test_local.py",),
    ),
    Mutation(
        "a worker that was alone goes on as one of several",
        "bench/launch/local.py",
        "    if worker.alone and worker in crew.alive:\n        crew.dismiss(worker)\n",
        "",
        ("tests/launch/test_local.py",),
    ),
    Mutation(
        "a stage tried alone is told that it shares its device",
        "bench/launch/local.py",
        ", shared=False)",
        ")",
        ("tests/launch/test_local.py",),
    ),
    Mutation(
        "packed stages of a job start beside one that needs its GPU alone",
        "bench/launch/slurm/stage_process.py",
        "        if not any(other.pid is not None and (self.alone or other.alone) for other in self.beside):\n",
        "        if True:\n",
        ("tests/launch/slurm/test_supervisor.py",),
    ),
    Mutation(
        "stages on other GPUs of a job count as beside",
        "bench/launch/slurm/supervisor.py",
        "[other for other in others if other.gpu == process.gpu]",
        "list(others)",
        ("tests/launch/slurm/test_supervisor.py",),
    ),
    Mutation(
        "attempts that were cut short, as by a preemption, count as no progress",
        "bench/launch/slurm/stage_process.py",
        "if each.end is not None and _seconds(each) >= full_seconds]",
        "if each.end is not None]",
        ("tests/launch/slurm/test_supervisor.py::test_attempts_that_were_cut_short_are_passed_over",),
    ),
    Mutation(
        "a stage of a job that is alone is told that it shares its GPU",
        "bench/launch/slurm/stage_process.py",
        " and not self.alone\n",
        "\n",
        ("tests/launch/slurm/test_supervisor.py",),
    ),
    Mutation(
        "out of memory beside others is a failure",
        "bench/training/worker.py",
        "    if settings.shared:\n        fewer",
        "    if False:\n        fewer",
        ("tests/training/test_worker.py",),
    ),
    Mutation(
        "every worker is told that it shares its device",
        "bench/grid.py",
        "            used.count(device) > 1,",
        "            True,",
        ("tests/launch/test_local.py",),
    ),
    Mutation(
        "recording cannot be switched off",
        "bench/grid.py",
        "grid.cuda_graphs,",
        "True,",
        ("tests/launch/test_local.py",),
    ),
    Mutation(
        "annotations of fields do not count as code",
        "bench/store/definitions.py",
        '(name == "annotation" and isinstance(node, ast.arg))',
        'name == "annotation"',
        ("tests/store/test_definitions.py",),
    ),
    Mutation(
        "--again leaves out what starts from a stage",
        "bench/planning/plan.py",
        "        if any(parent.key in again for parent in stage.parents):\n",
        "        if any(parent.key in again for parent in ()):\n",
        ("tests/launch/test_again.py",),
    ),
    Mutation(
        "a checkpoint does not say which weights its stage began with",
        "bench/training/fit.py",
        ', digest(ancestry["parents"])))',
        "))",
        ("tests/training/test_fit.py",),
    ),
    Mutation(
        "a table looks at the devices of last stages only",
        "bench/tables/records.py",
        " for stage in there.values()})",
        " for stage in [*there.values()][-1:]})",
        ("tests/tables/test_tables.py",),
    ),
    # ---------------------------------------------------------------------------------------- evaluation and tables
    Mutation(
        "evaluation in train mode",
        "bench/training/evaluate.py",
        "split is labelled\n    model.eval()\n",
        "split is labelled\n    model.train()\n",
        ("tests/training/test_evaluate.py::test_predictions_meet_their_own_labels_in_eval_mode",),
    ),
    Mutation(
        "the time of a stage leaves out its evaluation",
        "bench/training/fit.py",
        'round(trained.seconds + measured.get("evaluation_seconds", 0.0), 3)',
        "trained.seconds",
        ("tests/test_grid.py::test_records_measure_more_than_the_metric",),
    ),
    Mutation(
        "what a stage freed is kept from all others",
        "bench/device.py",
        "        allocator.malloc_trim(0)\n",
        "        pass\n",
        ("tests/test_device.py::test_memory_is_kept_between_steps_and_given_back_between_stages",),
    ),
    Mutation(
        "stages whose evaluation was not timed are a price",
        "bench/store/store.py",
        'timed = not record.get("metrics") or',
        "timed = True or",
        ("tests/planning/test_cost.py::test_seconds_of_training_alone_price_nothing",),
    ),
    Mutation(
        "costs do not say that evaluation was not timed",
        "bench/tables/records.py",
        "sum(whole_seconds(stage) is None",
        "sum(whole_seconds(stage) is not None",
        ("tests/tables/test_comparison.py::test_the_cost_says_of_how_many_stages_evaluation_was_not_timed",),
    ),
    Mutation(
        "evaluation on the training split",
        "bench/training/fit.py",
        "logits, labels = predict(stage, model, open_data(data, stage, settings), device)",
        "logits, labels = predict(stage, model, open_data(stage.data, stage, settings), device)",
        ("tests/training/test_evaluate.py::test_a_cells_number_is_that_of_its_weights_on_the_test_split",),
    ),
    Mutation(
        "a search takes the highest value, whatever the direction",
        "bench/data/metrics.py",
        'return value if self.better == "higher" else -value',
        "return value",
        ("tests/planning/test_search.py::test_the_declared_direction_says_which_candidate_is_best",),
    ),
    Mutation(
        "F1 of the other class",
        "bench/training/evaluate.py",
        "f1_score(truth == number, guess == number,",
        "f1_score(truth != number, guess != number,",
        ("tests/training/test_evaluate.py::test_metrics_of_two_classes_and_of_each_of_them",),
    ),
    Mutation(
        "balanced accuracy counts classes that do not occur",
        "bench/training/evaluate.py",
        "recall_score(truth, guess, labels=occurring,",
        "recall_score(truth, guess, labels=range(logits.shape[1]),",
        ("tests/training/test_evaluate.py::test_several_classes_are_averaged_over_those_that_occur",),
    ),
    Mutation(
        "AUROC of probabilities that round to ties",
        "bench/training/evaluate.py",
        "odds = logits[:, number] - others.logsumexp(dim=1)",
        "odds = logits.softmax(dim=1)[:, number] + 0 * others[:, 0]",
        ("tests/training/test_evaluate.py::test_certain_predictions_are_ranked_and_not_tied",),
    ),
    Mutation(
        "weights that objectives compare are those without what adapters add",
        "bench/models/adapters.py",
        "value = value if isinstance(function, Mixed) else function(value)",
        "value = value if isinstance(function, nn.Module) else function(value)",
        ("tests/models/test_adapters.py::test_penalties_are_of_the_weights_and_not_of_the_adapters",),
    ),
    Mutation(
        "AUROC is looked for in the counts of the whole split, not of what is held out",
        "bench/planning/cell.py",
        "if largest < sum(counts) or not counts:",
        "if largest < sum(map(sum, of_splits)) or not counts:",
        ("tests/planning/test_search.py::test_a_metric_that_says_nothing_of_one_class_is_refused_in_time",),
    ),
    Mutation(
        "a column shows the test split in place of its own",
        "bench/planning/plan.py",
        "metric=in_split(cell.metric, split),",
        "metric=cell.metric,",
        ("tests/planning/test_columns.py::test_mnli_is_trained_once_and_shown_twice",),
    ),
    Mutation(
        "candidates are measured on a further test split",
        "bench/planning/cell.py",
        '        if self._expansion.part == "fit":\n            return ()\n',
        "",
        ("tests/planning/test_columns.py::test_candidates_of_a_search_are_not_measured_on_the_further_split",),
    ),
    Mutation(
        "logits left in the order of lengths",
        "bench/training/evaluate.py",
        "[torch.argsort(order)]",
        "",
        ("tests/training/test_evaluate.py::test_predictions_meet_their_own_labels_in_eval_mode",),
    ),
    Mutation(
        "search judged on the test split",
        "bench/planning/cell.py",
        '        if split == "test" and not searching:',
        '        if split == "test":',
        (
            "tests/planning/test_search.py::test_candidates_never_see_the_test_split_and_the_chosen_one_trains_on_everything",
        ),
    ),
    Mutation(
        "population standard deviation in the table",
        "bench/tables/compare.py",
        "np.std(values, ddof=1)",
        "np.std(values, ddof=0)",
        ("tests/tables/test_tables.py::test_mean_and_sample_standard_deviation",),
    ),
    Mutation(
        "the report calls a higher loss better",
        "bench/report/differences.py",
        "metric.merit(x) for x in",
        "x for x in",
        ("tests/report/test_differences.py::test_where_less_is_better_a_lower_value_has_merit",),
    ),
    Mutation(
        "the report overlooks missing seeds",
        "bench/report/content.py",
        "(row, task, seed) not in seeds]",
        "not seeds]",
        ("tests/report/test_content.py::test_missing_seeds_are_named_by_row_and_task",),
    ),
    Mutation(
        "a quantity without a direction has a best row",
        "bench/tables/compare.py",
        "if self.column(task).better is None:",
        "if not self.rows:",
        (f"{QUANTITIES}::test_without_a_direction_nothing_is_best_and_nothing_has_a_rank",),
    ),
    Mutation(
        "the log of the loss has another base",
        "bench/tables/quantities.py",
        "math.log(loss)",
        "math.log10(loss)",
        (f"{QUANTITIES}::test_the_log_of_the_loss_is_taken_seed_by_seed",),
    ),
    Mutation(
        "the gap of a further split is that of the first one",
        "bench/tables/quantities.py",
        "    if split is None:\n        return _measured",
        "    if True:\n        return _measured",
        (f"{QUANTITIES}::test_the_gap_is_that_of_the_split_which_a_column_shows",),
    ),
    Mutation(
        "a row without a place on the axis is left out silently",
        "bench/tables/layout.py",
        'unplaced.append(f"{row} on {task}, which has no one count of {axis.label}")',
        "continue",
        (f"{LAYOUT}::test_rows_without_a_place_are_named_under_the_table",),
    ),
    Mutation(
        "rows at the same position are one line",
        "bench/tables/layout.py",
        "replace(spot, series=row) if spot.series in ambiguous else spot",
        "spot",
        (f"{LAYOUT}::test_rows_at_the_same_place_are_lines_of_their_own",),
    ),
    Mutation(
        "settings that differ between seeds are those of the last one",
        "bench/tables/verdicts.py",
        "values[name][value] = None",
        "values[name] = {value: None}",
        (f"{VERDICTS}::test_settings_that_differ_between_seeds_are_both_named",),
    ),
    Mutation(
        "any number of rounds is comparable with the paper's one",
        "bench/tables/verdicts.py",
        '"self_distillation.rounds", rounds(trained)',
        '"self_distillation.rounds", 1',
        (f"{VERDICTS}::test_rounds_and_the_weight_of_the_loss_decide_too",),
    ),
    Mutation(
        "shared pre-training passes for one of its own",
        "bench/tables/verdicts.py",
        "max(earlier.values()) > 1",
        "max(earlier.values()) > len(cells)",
        (f"{VERDICTS}::test_pretraining_is_shared_where_seeds_have_a_stage_in_common",),
    ),
    Mutation(
        "the most frequent class goes by its number where it has a name",
        "bench/tables/comparison.py",
        "names = test.class_names if test is not None and test.class_names else map(str, range(len(counts)))",
        "names = map(str, range(len(counts)))",
        ("tests/tables/test_comparison.py::test_the_most_frequent_class_has_an_f1_where_the_classes_have_names",),
    ),
    # ---------------------------------------------------------------------------------------- bad records files
    Mutation(
        "lines that are left out are not told in the legend",
        "bench/tables/rebuild.py",
        "    left_out += lines\n",
        "",
        (f"{SWEEP}::test_every_damage_is_told_in_the_legend_and_on_standard_error",),
    ),
    Mutation(
        "lines that are left out are not told on standard error",
        "bench/tables/rebuild.py",
        'left out: {_extent(line)}", file=sys.stderr)',
        'left out: {_extent(line)}")',
        (f"{SWEEP}::test_every_damage_is_told_in_the_legend_and_on_standard_error",),
    ),
    Mutation(
        "files of newer versions are read",
        "bench/tables/grid_facts.py",
        "if facts.schema != SCHEMA:",
        "if facts.schema < SCHEMA:",
        (f"{SWEEP}::test_a_file_whose_first_line_is_none_is_left_out_as_a_whole",),
    ),
    Mutation(
        "of a file without a first line the others count",
        "bench/tables/records.py",
        "            if number == 1:\n                return NOTHING\n",
        "",
        (f"{SWEEP}::test_a_file_whose_first_line_is_none_is_left_out_as_a_whole",),
    ),
    Mutation(
        "of two values of a key the last one counts",
        "bench/tables/records.py",
        'raise ValueError(f"{cell} stands there before with other values")',
        "pass",
        (f"{SWEEP}::test_csv_is_what_is_recomputed",),
    ),
    Mutation(
        "cells of another grid are joined",
        "bench/tables/records.py",
        '(("method", grid.rows), ("task", grid.tasks), ("seed", grid.seeds))',
        '(("task", grid.tasks), ("seed", grid.seeds))',
        (f"{SWEEP}::test_every_damage_is_told_in_the_legend_and_on_standard_error",),
    ),
    Mutation(
        "a damaged file is replaced by what could be read of it",
        "bench/tables/command.py",
        "if any(line.path.resolve() in own for line in left_out):",
        "if not left_out and own is None:",
        (f"{SWEEP}::test_damaged_lines_are_not_overwritten",),
    ),
    Mutation(
        "a stage whose line is missing is shared by no seeds",
        "bench/tables/comparison.py",
        "if missing_stages(record, stages):\n            # A line",
        'if all(key not in stages for key in record["stages"]):\n            # A line',
        (f"{SWEEP}::test_a_missing_line_of_a_stage_makes_no_difference_look_certain",),
    ),
    Mutation(
        "several commits are no warning",
        "bench/tables/table.py",
        "return [warning] if len(commits) > 1 else []",
        "return [warning] if len(commits) > 2 else []",
        (f"{SWEEP}::test_every_damage_is_told_in_the_legend_and_on_standard_error",),
    ),
    Mutation(
        "names that begin with a bracket are an argument in LaTeX",
        "bench/tables/latex.py",
        '"^ ([\\[*])"',
        '"^ ([*])"',
        ("tests/tables/test_latex.py::test_names_are_text",),
    ),
    Mutation(
        "letters that LaTeX does not know stand as they are",
        "bench/tables/latex.py",
        "(letter <= LAST_LATIN and letter not in WITHOUT_GLYPH)",
        "letter not in WITHOUT_GLYPH",
        ("tests/tables/test_latex.py::test_names_are_text",),
    ),
    Mutation(
        "a negative number has a hyphen in LaTeX",
        "bench/tables/latex.py",
        'text = MINUS.sub("−", text)',
        "pass",
        ("tests/tables/test_latex.py::test_names_are_text",),
    ),
    Mutation(
        "lines that are left out are no difference",
        "bench/tables/command.py",
        "return 1 if lines or left_out else 0",
        "return 1 if lines else 0",
        (f"{SWEEP}::test_a_comparison_of_what_was_left_out_does_not_pass",),
    ),
    # ---------------------------------------------------------------------------------------- predictions, curves
    Mutation(
        "predicted classes of rounded logits",
        "bench/tables/predictions.py",
        '"predicted": logits.argmax(dim=1)',
        '"predicted": rounded.argmax(dim=1)',
        (f"{PREDICTIONS}::test_a_tie_in_float16_flips_no_predicted_class",),
    ),
    Mutation(
        "losses of rounded logits",
        "bench/tables/predictions.py",
        "cross_entropy(logits.double(), labels",
        "cross_entropy(rounded.double(), labels",
        (f"{PREDICTIONS}::test_a_tie_in_float16_flips_no_predicted_class",),
    ),
    Mutation(
        "AUROC of rounded logits",
        "bench/predictions.py",
        "is not None and predictions.exact_logits and",
        "is not None and",
        (f"{PREDICTIONS}::test_metrics_of_a_trained_grid_come_out_again",),
    ),
    Mutation(
        "cells without predictions are passed over",
        "bench/tables/predictions.py",
        "return [name for name in shown if not paths[name].is_file()]",
        "return []",
        (f"{PREDICTIONS}::test_cells_of_older_records_are_named",),
    ),
    Mutation(
        "publishing predictions names another table",
        "bench/planning/plan.py",
        '"publish_predictions", "plugins"))',
        '"plugins"))',
        (f"{PREDICTIONS}::test_nothing_is_published_unasked_and_no_key_depends_on_it",),
    ),
    Mutation(
        "parts of a loss in TensorBoard under the name of the whole",
        "bench/tensorboard.py",
        'f"parts/{name}": value',
        '"loss": value',
        ("tests/test_tensorboard.py::test_names_of_a_points_numbers",),
    ),
    Mutation(
        "a GPU's records say nothing of its driver",
        "bench/store/provenance.py",
        '**(_gpu_versions() if where.type == "cuda" else {}),',
        "",
        ("tests/store/test_provenance.py::test_a_gpu_names_cuda_cudnn_and_driver",),
    ),
    # ---------------------------------------------------------------------------------------- plan and store
    Mutation(
        "key without the data checksum",
        "bench/specs/spec.py",
        "if (value := getattr(self, name)) != left_out\n",
        "if (value := getattr(self, name)) != left_out and name != 'checksum'\n",
        ("tests/specs/test_specs.py::test_every_field_changes_the_key",),
    ),
    Mutation(
        "random streams that depend on the process",
        "bench/specs/streams.py",
        '    text = json.dumps([seed, *names], separators=(",", ":"))',
        '    text = f"{seed}{hash(names)}"',
        ("tests/specs/test_specs.py::test_streams_are_pinned",),
    ),
    Mutation(
        "lease by non-exclusive write",
        "bench/store/files.py",
        "        os.link(temporary, path)",
        "        os.replace(temporary, path)",
        ("tests/store/test_store.py::test_of_many_claims_at_once_exactly_one_succeeds",),
    ),
    Mutation(
        "weights used without their checksum",
        "bench/store/store.py",
        '        if sha256(path) != record["weights"]["sha256"]:',
        "        if False:",
        ("tests/store/test_store.py::test_changed_weights_of_the_same_size_are_found_before_use",),
    ),
    # ---------------------------------------------------------------------------------------- Slurm
    Mutation(
        "an array element requeues by its raw id",
        "bench/launch/slurm/supervisor.py",
        "    if array:\n",
        "    if not array:\n",
        ("tests/launch/slurm/test_supervisor.py::test_an_announced_end_checkpoints_and_requeues_this_element_only",),
    ),
    Mutation(
        "workers die of the announcement",
        "bench/training/fork_server.py",
        'signal.signal(signal.Signals[f"SIG{name}"], signal.SIG_IGN)',
        'signal.signal(signal.Signals[f"SIG{name}"], signal.SIG_DFL)',
        ("tests/launch/slurm/test_supervisor.py::test_signals_to_every_process_of_the_job_are_as_good",),
    ),
    Mutation(
        "workers have the environment of the first one",
        "bench/training/fork_server.py",
        '    os.environ.clear()\n    os.environ.update(order["environment"])\n',
        "",
        ("tests/training/test_fork_server.py::test_a_worker_is_this_processs_child_with_an_environment_of_its_own",),
    ),
    Mutation(
        "workers outlive a supervisor that is killed",
        "bench/training/fork_server.py",
        '    _die_with(order["parent"])\n',
        "",
        ("tests/launch/slurm/test_supervisor.py::test_no_worker_outlives_a_supervisor_that_is_killed",),
    ),
    Mutation(
        "what left its worker's session outlives the job",
        "bench/launch/slurm/supervisor.py",
        "in descendants(os.getpid()):",
        "in ():",
        ("tests/launch/slurm/test_supervisor.py::test_what_left_its_workers_session_does_not_outlive_the_job",),
    ),
    Mutation(
        "what workers leave stays a zombie",
        "bench/launch/slurm/supervisor.py",
        "        self._server.reap([*commenting, *(process.pid for process in self._processes.values())])\n",
        "",
        ("tests/launch/slurm/test_supervisor.py::test_what_workers_leave_does_not_stay_until_the_job_ends",),
    ),
    Mutation(
        "a worker's end is taken for that of an orphan",
        "bench/training/fork_server.py",
        "if ended.si_pid in workers or ended.si_pid",
        "if ended.si_pid",
        ("tests/training/test_fork_server.py::test_what_workers_leave_is_buried_and_no_status_of_theirs_is_lost",),
    ),
    Mutation(
        "a long environment is sent without waiting for the server to read",
        "bench/training/fork_server.py",
        "self._line.settimeout(ANSWER_SECONDS)",
        "self._line.settimeout(0.0)",
        ("tests/training/test_fork_server.py::test_an_environment_may_be_longer_than_what_a_socket_holds",),
    ),
    Mutation(
        "a plugin keeps its handlers of the job's signals",
        "bench/launch/slurm/supervisor.py",
        "        self._asked.take_over(self._cluster.signal)",
        "        pass",
        ("tests/launch/slurm/test_supervisor.py::test_a_plugin_with_handlers_of_its_own_hides_no_signal",),
    ),
    Mutation(
        "a heartbeat in the future keeps a stage for ever",
        "bench/store/ownership.py",
        "return time.monotonic() - since < STALE_SECONDS and clock(",
        "return clock(",
        ("tests/launch/slurm/test_leases.py::test_a_heartbeat_in_the_future_does_not_keep_a_stage_for_ever",),
    ),
    Mutation(
        "a cancelled job that starts again goes on",
        "bench/launch/slurm/supervisor.py",
        "if restarted and ledger.list_was_cancelled(",
        "if False and ledger.list_was_cancelled(",
        ("tests/launch/slurm/test_supervisor.py::test_a_cancelled_job_that_slurm_starts_again_takes_nothing",),
    ),
    Mutation(
        "records of a job name the code that lies there later",
        "bench/training/fork_server.py",
        "    keep_imported()",
        "    pass",
        ("tests/training/test_fork_server.py::test_the_code_of_a_record_is_that_which_the_server_imported",),
    ),
    Mutation(
        "a server that died is never replaced",
        "bench/training/fork_server.py",
        "self._process is not None and self._process.poll() is not None",
        "False",
        ("tests/training/test_fork_server.py::test_a_server_that_is_killed_leaves_its_workers_and_is_replaced",),
    ),
    Mutation(
        "lines that a recipe decides itself are read",
        "bench/planning/cell.py",
        "spec_field.name not in (*default.UNBOUND, *fixed)",
        "spec_field.name not in default.UNBOUND",
        ("tests/baselines/test_l2_sp.py::test_a_decay_bound_for_this_row_alone_is_refused",),
    ),
    Mutation(
        "a cancelled job requeues itself",
        "bench/launch/slurm/supervisor.py",
        "elif self._asked.terminated and self._out_of_time() is False:",
        "elif self._asked.terminated and self._out_of_time() is None:",
        ("tests/launch/slurm/test_supervisor.py::test_a_job_cancelled_after_the_announcement_stays_cancelled",),
    ),
    Mutation(
        "what a worker started outlives it",
        "bench/launch/slurm/stage_process.py",
        "        _kill_group(pid)  # what the worker left",
        "        pass  # what the worker left",
        ("tests/launch/slurm/test_supervisor.py::test_every_stage_gets_a_worker_of_its_own_and_the_job_ends_well",),
    ),
    Mutation(
        "attempts that progress are given up",
        "bench/launch/slurm/stage_process.py",
        "    if len(begun) > 1 or any(newest_checkpoint(attempts[-1].path.parents[1]) > step for step in begun):\n"
        "        return None\n",
        "",
        ("tests/launch/slurm/test_supervisor.py::test_when_a_stage_is_given_up",),
    ),
    Mutation(
        "jobs take the shortest chain first",
        "bench/launch/slurm/pool.py",
        "_Turn(-entry.ahead, position)",
        "_Turn(entry.ahead, position)",
        ("tests/launch/slurm/test_pool.py::test_the_longest_chain_of_steps_comes_first",),
    ),
    Mutation(
        "an interrupted stage waits for its turn",
        "bench/launch/slurm/pool.py",
        "if not alive}",
        "if alive}",
        ("tests/launch/slurm/test_pool.py::test_what_was_interrupted_comes_before_longer_chains",),
    ),
    Mutation(
        "an interrupted stage is given back as if it had not begun",
        "bench/launch/slurm/supervisor.py",
        "self._pool.leave(stage)",
        "self._pool.give_back(stage)",
        ("tests/launch/slurm/test_supervisor.py::test_an_interrupted_stage_is_the_first_that_the_next_job_takes",),
    ),
    Mutation(
        "a job goes on with later generations when its own are finished",
        "bench/launch/slurm/pool.py",
        "if taken is None and not self.over:",
        "if taken is None:",
        ("tests/launch/slurm/test_pool.py::test_a_job_serves_later_generations_only_while_its_own_is_unfinished",),
    ),
    Mutation(
        "a failure from before the submission counts",
        "bench/launch/slurm/pool.py",
        "[entry.attempts :][-1:]",
        "[-1:]",
        ("tests/launch/slurm/test_pool.py::test_a_stage_that_failed_since_is_left_and_so_is_what_needs_it",),
    ),
    Mutation(
        "a stage is not looked at again after its lease is taken",
        "bench/launch/slurm/pool.py",
        "if self._may_run(position) and not (attempts",
        "if not (attempts",
        ("tests/launch/slurm/test_pool.py::test_what_ends_between_the_look_and_the_lease_is_not_taken",),
    ),
    Mutation(
        "a stage that a local launcher runs is taken",
        "bench/launch/slurm/pool.py",
        " and not (attempts and is_alive(attempts[-1])):",
        ":",
        ("tests/launch/slurm/test_pool.py::test_what_a_launcher_without_leases_runs_is_not_taken",),
    ),
    Mutation(
        "one damaged stage ends every job",
        "bench/launch/slurm/pool.py",
        "except DamagedStore as error:  # one",
        "except ZeroDivisionError as error:  # one",
        ("tests/launch/slurm/test_pool.py::test_a_damaged_stage_is_passed_over_and_looked_at_again",),
    ),
    Mutation(
        "a lease that is held is taken",
        "bench/launch/slurm/leases.py",
        "if last is not None and _alive(last):",
        "if last is None and _alive(self._folder):",
        ("tests/launch/slurm/test_leases.py::test_a_stage_is_one_jobs_until_it_is_given_back",),
    ),
    Mutation(
        "a node stays excluded after it finished a stage",
        "bench/launch/slurm/troubles.py",
        "max(_modified(_marker(store_root, trouble.node)), forgotten)",
        "forgotten",
        ("tests/launch/slurm/test_troubles.py::test_a_node_with_three_troubles_is_excluded_until_it_finished_a_stage",),
    ),
    Mutation(
        "nodes are blamed for a grid that cannot run anywhere",
        "bench/launch/slurm/troubles.py",
        "if trouble.worklist in of_grids or len(",
        "if len(",
        ("tests/launch/slurm/test_troubles.py::test_nodes_are_not_blamed_for_what_is_a_grids_fault",),
    ),
    Mutation(
        "one broken node stops a grid",
        "bench/launch/slurm/troubles.py",
        "(0 if only_node else 1)",
        "0",
        ("tests/launch/slurm/test_troubles.py::test_a_grid_of_which_nothing_can_be_begun_is_stopped",),
    ),
    Mutation(
        "troubles stop a grid of which stages are done",
        "bench/launch/slurm/troubles.py",
        "if everywhere and not count_finished(store_root, worklist):",
        "if everywhere:",
        ("tests/launch/slurm/test_troubles.py::test_a_grid_of_which_nothing_can_be_begun_is_stopped",),
    ),
    Mutation(
        "lines of the setup that fail everywhere do not stop a grid",
        "bench/launch/slurm/troubles.py",
        'Trouble(float(seconds), node_name, job, "".join(worklist), "", reason)',
        'Trouble(float(seconds), node_name, job, "", "", reason)',
        (
            "tests/launch/slurm/test_troubles.py::test_a_setup_that_fails_on_every_node_stops_the_grid_and_blames_no_node",
        ),
    ),
    Mutation(
        "a stage is never given up for its troubles",
        "bench/launch/slurm/troubles.py",
        "if len(mine) >= TIMES or len({t.node for t in mine}) >= NODES",
        "if len(mine) > 2 * TIMES",
        ("tests/launch/slurm/test_troubles.py::test_a_stage_is_given_up_after_three_nodes_or_six_times",),
    ),
    Mutation(
        "a job goes on taking stages after a trouble",
        "bench/launch/slurm/supervisor.py",
        "if self._trouble or self._stopped or",
        "if self._stopped or",
        ("tests/launch/slurm/test_supervisor.py::test_after_one_trouble_a_job_ends_and_is_requeued_a_few_times",),
    ),
    Mutation(
        "a job does not see that its grid was stopped",
        "bench/launch/slurm/supervisor.py",
        "        if self._stopped:\n            return\n",
        '        self._stopped = ""\n',
        ("tests/launch/slurm/test_supervisor.py::test_a_grid_whose_stages_fail_alike_is_stopped_and_no_job_goes_on",),
    ),
    Mutation(
        "nodes that were excluded before are forgotten",
        "bench/launch/slurm/supervisor.py",
        "filter(None, [exclude, *sorted(excluded)])",
        "[node for node in excluded if node == troubles.node()]",
        ("tests/launch/slurm/test_supervisor.py::test_a_list_of_excluded_nodes_keeps_those_of_before",),
    ),
    Mutation(
        "a requeue is tried once",
        "bench/launch/slurm/supervisor.py",
        "if not client.is_unreachable(reason) or time.monotonic() > until:",
        "if True:",
        (
            "tests/launch/slurm/test_supervisor.py::test_a_requeue_is_tried_again_while_the_controller_cannot_be_reached",
        ),
    ),
    Mutation(
        "stages are started that cannot checkpoint before the limit",
        "bench/launch/slurm/supervisor.py",
        "return self._end - time.monotonic() >= least",
        "return True",
        ("tests/launch/slurm/test_supervisor.py::test_nothing_is_started_that_could_not_checkpoint_before_the_limit",),
    ),
    Mutation(
        "an earlier step keeps a stage that kills its jobs from being given up",
        "bench/launch/slurm/stage_process.py",
        "if spoke or len(begun | {step} - {None}) > 1:",
        "if spoke:",
        (
            "tests/launch/slurm/test_supervisor.py::test_a_stage_whose_jobs_die_without_a_word_is_given_up_after_three_nodes",
        ),
    ),
    Mutation(
        "sbatch talks to another cluster",
        "bench/launch/slurm/client.py",
        'kept = {"SLURM_CONF", "SLURM_TIME_FORMAT"}',
        'kept = {"SLURM_TIME_FORMAT"}',
        ("tests/launch/slurm/test_ledger.py::test_slurms_programs_get_none_of_a_surrounding_jobs_variables",),
    ),
    Mutation(
        "accounting is asked for what is still queued",
        "bench/launch/slurm/client.py",
        "for job in expected if job not in answered",
        "for job in expected",
        ("tests/launch/slurm/test_client.py::test_accounting_is_asked_only_for_what_left_the_queue",),
    ),
    Mutation(
        "accounting's word counts more than the queue's",
        "bench/launch/slurm/client.py",
        "    return {**_finished(noted, None if expected is None else _forgotten(expected, states)), **states}",
        "    return {**states, **_finished(noted, None if expected is None else _forgotten(expected, states))}",
        ("tests/launch/slurm/test_client.py::test_accounting_is_asked_only_for_what_left_the_queue",),
    ),
    Mutation(
        "many names are asked for in one argument",
        "bench/launch/slurm/client.py",
        "        if listed and length + len(word) + 1 > ARGUMENT_LENGTH:",
        "        if False:",
        ("tests/launch/slurm/test_client.py::test_many_names_are_asked_for_in_several_calls_and_nothing_else_is",),
    ),
    Mutation(
        "a job whose setup failed goes on",
        "bench/launch/slurm/sbatch.py",
        """trap 'bench_failed "$?" "${#BASH_SOURCE[@]}" "$BASH_COMMAND" "$LINENO"' ERR\"""",
        """\"""",
        ("tests/launch/slurm/test_sbatch.py::test_a_line_of_the_setup_that_fails_ends_the_job",),
    ),
    Mutation(
        "what follows the setup runs under its traps",
        "bench/launch/slurm/sbatch.py",
        'UNGUARD = "trap - ERR EXIT TERM; set +e"',
        'UNGUARD = "trap - ERR TERM"',
        ("tests/launch/slurm/test_sbatch.py::test_after_the_setup_a_shell_fails_as_any_other",),
    ),
    Mutation(
        "a broken setup is tried again for ever",
        "bench/launch/slurm/sbatch.py",
        '[ "$restarts" -ge 2 ] || ',
        "",
        ("tests/launch/slurm/test_sbatch.py::test_it_is_tried_again_twice_and_each_time_is_noted",),
    ),
    Mutation(
        "a job that is cancelled in its setup is requeued",
        "bench/launch/slurm/sbatch.py",
        '    [ "$1" -ne 143 ] || exit 143\n',
        "",
        ("tests/launch/slurm/test_sbatch.py::test_a_job_that_somebody_ends_in_its_setup_stays_ended",),
    ),
    Mutation(
        "a budget that is used up passes by itself",
        "bench/launch/slurm/reasons.py",
        r"(Assoc|QOS)Grp\w*Minutes|(Assoc|QOS)GrpWall|QOSUsageThreshold",
        r"QOSUsageThreshold",
        ("tests/launch/slurm/test_reasons.py::test_what_never_passes_comes_with_its_fix",),
    ),
    Mutation(
        "a limit on a user's jobs together never passes",
        "bench/launch/slurm/reasons.py",
        '    r"Max\\w*Per(User|Account)",\n',
        "",
        ("tests/launch/slurm/test_reasons.py::test_what_passes_by_itself_needs_nobody",),
    ),
    Mutation(
        "the weakest limit of a kind counts",
        "bench/launch/slurm/limits.py",
        "    for source, minutes in walls[:1]:",
        "    for source, minutes in walls:",
        ("tests/launch/slurm/test_limits.py::test_the_strongest_limit_of_a_kind_counts_as_in_slurm",),
    ),
    Mutation(
        "a job needs every partition that it names",
        "bench/launch/slurm/limits.py",
        "    if refusals and None not in refusals:",
        "    if refusals and refusals[0] is not None:",
        ("tests/launch/slurm/test_limits.py::test_one_of_several_partitions_is_enough",),
    ),
    Mutation(
        "a guess counts more than what Slurm says",
        "bench/monitor/failures.py",
        '(re.sub(GUESSES, "", reason), *reversed(by_slurm)',
        "(reason, *reversed(by_slurm)",
        ("tests/monitor/test_failures.py::test_every_failure_is_of_its_class",),
    ),
    Mutation(
        "the doctor is content with a first start",
        "bench/doctor/sample_job.py",
        '_wait(folder, name, f"{job}_0", "again.json", "refused.json")',
        '_wait(folder, name, f"{job}_0", "answer.json", "refused.json")',
        ("tests/doctor/test_doctor.py::test_a_requeued_job_that_does_not_start_again_is_told",),
    ),
    Mutation(
        "a job that has an id of ours is ours",
        "bench/launch/slurm/ledger.py",
        "    if state is None or state.name != submission.name:",
        "    if state is None:",
        ("tests/launch/slurm/test_ledger.py::test_what_slurm_does_not_know_is_gone_and_never_live",),
    ),
    Mutation(
        "an array may have one index too many",
        "bench/launch/slurm/arrays.py",
        "cluster.array_parallelism, largest_array)",
        "cluster.array_parallelism, largest_array + 1)",
        ("tests/launch/slurm/test_arrays.py::test_no_array_is_larger_than_slurm_and_the_settings_allow",),
    ),
    Mutation(
        "nobody comes for the generations of arrays that were left out",
        "bench/launch/slurm/arrays.py",
        "reach[able[-1]] = max(reach[able[-1]], left_out.generation)",
        "reach[able[-1]] = reach[able[-1]]",
        ("tests/launch/slurm/test_arrays.py::test_every_stage_has_jobs_that_can_run_it_whatever_the_limits",),
    ),
    Mutation(
        "a second array of one class of resources comes before the first of another",
        "bench/launch/slurm/arrays.py",
        "key=lambda number: (number not in first_of_class, number)",
        "key=lambda number: number",
        ("tests/launch/slurm/test_arrays.py::test_every_class_of_resources_is_kept_before_a_second_array_of_one",),
    ),
    Mutation(
        "the last job takes itself for a waiting one and cancels itself",
        "bench/launch/slurm/submit.py",
        "ledger.element_state(each, 0, queued).waiting]",
        "ledger.element_state(each, 0, queued).live]",
        ("tests/launch/slurm/test_submit.py::test_the_last_job_writes_tables_and_submits_what_is_left",),
    ),
    Mutation(
        "a last job that waits for its turn submits a grid that is cancelled meanwhile",
        "bench/launch/slurm/submit.py",
        "if command_line.again and ledger.was_cancelled(store.root, plan.source):",
        "if False:",
        ("tests/launch/slurm/test_submit.py::test_a_last_job_that_runs_while_its_grid_is_cancelled_submits_nothing",),
    ),
    Mutation(
        "a grid is not submitted again after other grids' jobs for it were cancelled",
        "bench/launch/slurm/submit.py",
        "return -1 if submitted.by_others else progress(plan, store)",
        "return progress(plan, store)",
        ("tests/launch/slurm/test_submit.py",),
    ),
    Mutation(
        "cancelling notes nothing where the last array has ended",
        "bench/launch/slurm/cancel.py",
        " or submission is mine[-1]",
        "",
        ("tests/launch/slurm/test_submit.py::test_a_grid_is_cancelled_whichever_of_its_jobs_are_left",),
    ),
    Mutation(
        "the last job submits again without progress",
        "bench/launch/slurm/submit.py",
        "elif progress(plan, store) <= progress_before:",
        "elif progress(plan, store) < progress_before:",
        ("tests/launch/slurm/test_submit.py::test_progress_is_what_happened_since_the_job_was_submitted",),
    ),
    Mutation(
        "a stopped worklist still covers its stages",
        "bench/launch/slurm/cover.py",
        "if submission.worklist and troubles.stopped(store_root, submission.worklist) is None:",
        "if submission.worklist:",
        ("tests/launch/slurm/test_cover.py::test_a_stopped_worklist_covers_nothing",),
    ),
    Mutation(
        "jobs cover stages that need other resources",
        "bench/launch/slurm/cover.py",
        " and entry.kind in kinds)",
        ")",
        (
            "tests/launch/slurm/test_cover.py::test_stages_that_need_other_resources_than_live_jobs_have_are_not_covered",
        ),
    ),
    Mutation(
        "new jobs do not wait for those that run what they need",
        "bench/launch/slurm/arrays.py",
        "jobs = [*sorted(others, key=int), *(",
        "jobs = [*(",
        ("tests/launch/slurm/test_submit.py::test_what_needs_resources_that_no_live_job_has_is_missing",),
    ),
    Mutation(
        "a live job is trusted to try a stage that it takes for failed",
        "bench/launch/slurm/submit.py",
        "if cover is None or not will_be_tried or any(",
        "if cover is None or any(",
        ("tests/launch/slurm/test_submit.py::test_a_job_that_takes_a_stage_for_failed_will_not_try_it_again",),
    ),
    Mutation(
        "what one kind of stages asks of a cluster makes another grid",
        "bench/planning/plan.py",
        r're.match(r"\s*(([\w/.-]+/)?slurm\.|',
        r're.match(r"\s*(slurm\.|',
        ("tests/launch/slurm/test_ledger.py::test_what_one_kind_asks_for_is_no_other_grid",),
    ),
    Mutation(
        "a queue whose jobs only grew older ends the back-off",
        "bench/monitor/states.py",
        "_essence(before[1]) != _essence(states)",
        "before[1] != states",
        ("tests/monitor/test_states.py::test_the_queue_is_asked_less_often_while_nothing_changes",),
    ),
    Mutation(
        "following goes on though no job is left",
        "bench/monitor/follow.py",
        "if len(ended.left) == len(pending) or (",
        "if not pending or (",
        ("tests/monitor/test_follow.py::test_it_ends_when_no_job_is_left",),
    ),
    Mutation(
        "a job that Slurm forgot is done",
        "bench/monitor/states.py",
        "        return Seen(StageState.UNKNOWN, states[0].reason, share)\n",
        "        return Seen(StageState.DONE, states[0].reason, share)\n",
        ("tests/monitor/test_status.py::test_a_job_that_slurm_forgot_is_unknown_neither_done_nor_running",),
    ),
    # ---------------------------------------------------------------------------- hooks of the loop, more methods
    Mutation(
        "SAM goes downhill",
        "baselines/sam.py",
        "        scale = self.rho / norm.clamp(min=1e-12)",
        "        scale = -self.rho / norm.clamp(min=1e-12)",
        ("tests/baselines/test_sam.py::test_the_perturbation_has_length_rho_and_is_taken_back_bit_for_bit",),
    ),
    Mutation(
        "SAM's perturbation grows with the gradient",
        "baselines/sam.py",
        "        scale = self.rho / norm.clamp(min=1e-12)",
        "        scale = self.rho * torch.ones_like(norm)",
        ("tests/baselines/test_sam.py::test_it_is_two_explicit_passes_with_one_dropout",),
    ),
    Mutation(
        "SAM's second pass draws other dropout",
        "bench/training/loop.py",
        "                optimizer.perturb(self._optimizer)\n            self._add_up(step, micro_batches)",
        "                optimizer.perturb(self._optimizer)\n            self._add_up(step + 1, micro_batches)",
        ("tests/baselines/test_sam.py::test_it_is_two_explicit_passes_with_one_dropout",),
    ),
    Mutation(
        "SAM's perturbation is not taken back",
        "baselines/sam.py",
        "                weight.copy_(before)",
        "                pass",
        ("tests/baselines/test_sam.py::test_the_perturbation_has_length_rho_and_is_taken_back_bit_for_bit",),
    ),
    Mutation(
        "SAM in half precision",
        "baselines/sam.py",
        'not in ("float32", "float64")',
        'not in ("float32", "float64", "bfloat16")',
        ("tests/baselines/test_sam.py::test_low_precision_is_refused",),
    ),
    Mutation(
        "average of steps starts at 0 and stays too small",
        "baselines/ema.py",
        "                weight.copy_(state.tensors[name] / (1 - self.decay**context.total_steps))",
        "                weight.copy_(state.tensors[name])",
        ("tests/baselines/test_ema.py::test_what_is_kept_is_the_weighted_mean_of_all_steps",),
    ),
    Mutation(
        "average counts the new step by the decay",
        "baselines/ema.py",
        "[weights[name] for name in state.tensors], 1 - self.decay)",
        "[weights[name] for name in state.tensors], self.decay)",
        ("tests/baselines/test_ema.py::test_what_is_kept_is_the_weighted_mean_of_all_steps",),
    ),
    Mutation(
        "WiSE-FT interpolates a random head",
        "baselines/wise_ft.py",
        '("encoder.", "head.") if context.head_carried else ("encoder.",)',
        '("encoder.", "head.")',
        ("tests/baselines/test_wise_ft.py::test_the_encoder_goes_part_of_the_way_back_and_the_head_none",),
    ),
    Mutation(
        "WiSE-FT leaves a carried head alone",
        "baselines/wise_ft.py",
        '("encoder.", "head.") if context.head_carried else ("encoder.",)',
        '("encoder.",)',
        ("tests/baselines/test_wise_ft.py::test_a_head_that_was_trained_before_is_interpolated_and_a_decoder_never",),
    ),
    Mutation(
        "WiSE-FT goes the other part of the way",
        "baselines/wise_ft.py",
        "torch.lerp(reference[name], weight, self.alpha)",
        "torch.lerp(weight, reference[name], self.alpha)",
        ("tests/baselines/test_wise_ft.py::test_the_encoder_goes_part_of_the_way_back_and_the_head_none",),
    ),
    Mutation(
        "the loop overwrites layer-wise rates",
        "bench/specs/stage.py",
        '            rate = lr * group.get("rate_scale", 1.0)',
        "            rate = lr",
        ("tests/baselines/test_llrd.py::test_every_layer_has_its_rate_at_every_step_of_the_schedule",),
    ),
    Mutation(
        "layers near the output learn more slowly",
        "baselines/llrd.py",
        "self.layer_decay ** (last - depth)",
        "self.layer_decay**depth",
        ("tests/baselines/test_llrd.py::test_every_layer_has_its_rate_at_every_step_of_the_schedule",),
    ),
    Mutation(
        "the final norm learns as slowly as the embeddings",
        "bench/models/image.py",
        '    FINAL = ("norm.",)',
        "    FINAL = ()",
        ("tests/baselines/test_llrd.py::test_every_layer_has_its_rate_at_every_step_of_the_schedule",),
    ),
    Mutation(
        "RecAdam's pull ignores the layer's rate",
        "baselines/recadam_torch.py",
        'group["pull"].fill_(scale * lr *',
        'group["pull"].fill_(lr *',
        ("tests/baselines/test_llrd.py::test_recadam_scales_its_step_its_pull_and_its_decay",),
    ),
    Mutation(
        "RecAdam pulls where w is 0 or less",
        "baselines/recadam.py",
        "            gamma=self.gamma if self._pulls else 0.0,",
        "            gamma=self.gamma,",
        ("tests/training/test_constraints.py::test_recadam_with_a_task_weight_of_0_or_less_is_plain_adam",),
    ),
    Mutation(
        "RecAdam's task fades in where w is 0 or less",
        "baselines/recadam_torch.py",
        '1.0 if group["head"] or self.w <= 0 else',
        '1.0 if group["head"] else',
        ("tests/training/test_constraints.py::test_recadam_with_a_task_weight_of_0_or_less_is_plain_adam",),
    ),
    Mutation(
        "Mixout does not rescale what it keeps",
        "bench/models/adapters.py",
        "kept * (weight - self.start) / (1 - self.rate)",
        "kept * (weight - self.start)",
        ("tests/baselines/test_mixout.py::test_a_mixed_weight_is_the_papers_and_its_mean_is_the_weight",),
    ),
    Mutation(
        "Mixout mixes while it is evaluated",
        "bench/models/adapters.py",
        "        if not self.training or self.rate == 0:",
        "        if self.rate == 0:",
        ("tests/baselines/test_mixout.py::test_every_pass_draws_anew_and_eval_mode_reads_the_weights_as_they_are",),
    ),
    Mutation(
        "Mixout at rate 0 shifts the dropout behind it",
        "bench/models/adapters.py",
        "        if not self.training or self.rate == 0:",
        "        if not self.training:",
        ("tests/baselines/test_mixout.py::test_at_rate_0_it_is_fine_tuning_bit_for_bit",),
    ),
    Mutation(
        "Mixout leaves a mixed draw behind",
        "baselines/mixout.py",
        "remove_adapters(model, merge=False)",
        "remove_adapters(model.train(), merge=True)",
        ("tests/baselines/test_mixout.py::test_every_pass_draws_anew_and_eval_mode_reads_the_weights_as_they_are",),
    ),
    Mutation(
        "LoRA adapts the keys",
        "baselines/lora.py",
        "adapted = [projection in self.targets for projection in projections]",
        'adapted = [projection in (*self.targets, "key") for projection in projections]',
        ("tests/baselines/test_lora.py::test_merged_weights_are_w0_plus_alpha_over_r_times_ba",),
    ),
    Mutation(
        "LoRA's product is dropped at the end",
        "baselines/lora.py",
        "remove_adapters(model, merge=True)",
        "remove_adapters(model, merge=False)",
        ("tests/baselines/test_lora.py::test_merged_weights_are_w0_plus_alpha_over_r_times_ba",),
    ),
    Mutation(
        "LoRA's scale ignores the rank",
        "bench/models/adapters.py",
        "self.scale, self.rows = alpha / rank,",
        "self.scale, self.rows = alpha,",
        ("tests/baselines/test_lora.py::test_merged_weights_are_w0_plus_alpha_over_r_times_ba",),
    ),
    Mutation(
        "LoRA trains the whole encoder",
        "baselines/lora.py",
        "        model.encoder.requires_grad_(False)\n",
        "",
        ("tests/baselines/test_lora.py::test_adapters_and_head_are_trained_and_all_else_stays",),
    ),
    Mutation(
        "FreeLB normalises over the batch",
        "baselines/freelb.py",
        ".sum(dim=(1, 2), keepdim=True).sqrt()\n\n\n@recipe",
        ".sum(dim=(0, 1, 2), keepdim=True).sqrt()\n\n\n@recipe",
        ("tests/baselines/test_freelb.py::test_it_is_the_published_algorithm",),
    ),
    Mutation(
        "FreeLB perturbs padding",
        "baselines/freelb.py",
        'inputs["attention_mask"][..., None] if',
        "1 if",
        ("tests/baselines/test_freelb.py::test_padding_changes_neither_length_nor_loss",),
    ),
    Mutation(
        "FreeLB follows the last pass alone",
        "baselines/freelb.py",
        "return Loss(losses.mean(),",
        "return Loss(losses[-1],",
        ("tests/baselines/test_freelb.py::test_it_is_the_published_algorithm",),
    ),
    Mutation(
        "FreeLB may be split",
        "baselines/freelb.py",
        "    WHOLE_BATCH = True  #",
        "    WHOLE_BATCH = False  #",
        ("tests/training/test_micro_batches.py::test_what_needs_the_whole_batch_refuses_to_be_split",),
    ),
    Mutation(
        "L2-SP without its half",
        "baselines/l2_sp.py",
        "self.alpha / 2 * distance",
        "self.alpha * distance",
        ("tests/baselines/test_l2_sp.py::test_value_and_gradient_are_the_papers",),
    ),
    Mutation(
        "L2-SP decays to the origin, too",
        "baselines/l2_sp.py",
        'cell.configure(OPTIMIZER, "finetune", weight_decay=0.0)',
        'cell.configure(OPTIMIZER, "finetune")',
        ("tests/baselines/test_l2_sp.py::test_the_recipe_leaves_out_the_decay_towards_the_origin",),
    ),
    Mutation(
        "LP-FT drops the probe's head",
        "baselines/lp_ft.py",
        'head="carried")',
        'head="fresh")',
        ("tests/baselines/test_lp_ft.py::test_fine_tuning_starts_with_the_probes_head_bit_for_bit",),
    ),
    Mutation(
        "a fresh head is loaded",
        "bench/training/networks.py",
        'if part != "head" or stage.head == "carried"]',
        'if part != "head" or stage.head is not None]',
        ("tests/baselines/test_lp_ft.py::test_fine_tuning_starts_with_the_probes_head_bit_for_bit",),
    ),
    Mutation(
        "a start's head is dropped in silence",
        "bench/specs/stage.py",
        "        if self.head is None:\n            raise SpecError(",
        "        if self.head is None and self.init is None:\n            raise SpecError(",
        ("tests/baselines/test_lp_ft.py::test_a_head_is_neither_dropped_nor_carried_without_a_word",),
    ),
    Mutation(
        "the contrastive stage freezes positions",
        "bench/training/networks.py",
        '        labelled="labels" in stage.objective.needs,',
        '        labelled="head" in stage.objective.needs,',
        ("tests/baselines/test_supcon.py::test_positions_are_trained_wherever_the_encoder_is",),
    ),
    Mutation(
        "a probe turns dropout on while activity is measured",
        "baselines/supcon.py",
        "        model.encoder.train(mode)",
        "        model.encoder.train()",
        ("tests/baselines/test_supcon.py::test_a_probe_leaves_the_encoder_in_the_mode_it_was_in",),
    ),
    Mutation(
        "masked tokens of micro-batches are a mean of means",
        "bench/specs/objectives.py",
        '{"masked": masked}, batch.mask_share)',
        '{"masked": masked}, batch.share)',
        ("tests/training/test_micro_batches.py::test_one_and_four_micro_batches_agree",),
    ),
    Mutation(
        "matched predictions of micro-batches are a mean of means",
        "baselines/ablations.py",
        '{"predictions": distance}, batch.mask_share)',
        '{"predictions": distance})',
        ("tests/training/test_micro_batches.py::test_one_and_four_micro_batches_agree",),
    ),
    Mutation(
        "a term of a sum ignores its share",
        "bench/specs/stage.py",
        "term.loss(model, batch, own, context).of_step(batch))",
        "term.loss(model, batch, own, context))",
        ("tests/training/test_micro_batches.py::test_one_and_four_micro_batches_agree",),
    ),
    Mutation(
        "micro-batches of unequal size count alike",
        "bench/training/batches.py",
        "send(sizes / sizes.sum(), self.device)",
        "send(torch.full_like(sizes, 1 / len(sizes)), self.device)",
        ("tests/training/test_micro_batches.py::test_one_and_four_micro_batches_agree",),
    ),
    Mutation(
        "the end comes before activity is measured, too",
        "bench/training/loop.py",
        "    activity = _activity(",
        "    with torch.no_grad():\n        constraint.finish(model, {}, kept, context)\n    activity = _activity(",
        ("tests/training/test_constraints.py::test_the_hooks_come_in_their_order_and_the_end_comes_once",),
    ),
    Mutation(
        "what the end spoils is published",
        "bench/training/loop.py",
        "    _refuse_diverged(model, optimizer)\n    return Trained(",
        "    return Trained(",
        ("tests/training/test_constraints.py::test_what_the_end_spoils_is_never_published",),
    ),
    Mutation(
        "the last step is checkpointed",
        "bench/training/loop.py",
        "if stopping or (done % supervision.checkpoint_steps == 0 and done < total_steps):",
        "if stopping or done % supervision.checkpoint_steps == 0:",
        ("tests/training/test_constraints.py::test_who_is_killed_at_the_end_enters_again_before_it",),
    ),
    Mutation(
        "what a constraint keeps is not saved",
        "bench/training/loop.py",
        '        content[f"{name}_tensors"] = state.tensors',
        '        content[f"{name}_tensors"] = state.tensors if name == "state" else {}',
        ("tests/baselines/test_ema.py::test_the_average_survives_a_stop_after_any_step",),
    ),
    Mutation(
        "adapters are drawn from whatever was drawn before",
        "bench/training/loop.py",
        '    seed(stream(stage.seed, stage.name, "inject"), device)\n',
        "",
        ("tests/training/test_constraints.py::test_adapters_are_drawn_from_a_stream_of_their_own",),
    ),
    Mutation(
        "a record says NaN",
        "bench/training/fit.py",
        'return fields if math.isfinite(activity.value) else {**fields, "value": None}',
        "return fields",
        ("tests/training/test_fit.py::test_a_record_says_what_each_part_did_in_numbers_that_json_has",),
    ),
    Mutation(
        "what parts of a method do is measured in the precision of the stage",
        "bench/training/loop.py",
        "with torch.no_grad(), full_precision(context.device):",
        "with torch.no_grad(), autocast(stage, context.device):",
        ("tests/training/test_constraints.py::test_rounding_of_a_low_precision_is_not_what_a_part_does",),
    ),
    Mutation(
        "mixout draws a mask for each part of a batch",
        "bench/models/transformers_text.py",
        "with contextlib.nullcontext() if self._blocks_are_compiled else parametrize.cached():",
        "with contextlib.nullcontext():",
        ("tests/baselines/test_mixout.py::test_a_pass_draws_one_mask_for_a_matrix",),
    ),
    Mutation(
        "LoRA is planned on a backbone that names no attention",
        "baselines/lora.py",
        "if not stage.backbone.NAMES_ATTENTION:",
        "if False:",
        ("tests/baselines/test_lora.py::test_a_backbone_that_does_not_name_attention_is_refused_with_the_stage",),
    ),
    Mutation(
        "candidates are chosen by a metric that is 0 for all of them",
        "bench/data/metrics.py",
        'frozenset({"auroc", "mcc", "binary_f1"})',
        'frozenset({"auroc"})',
        ("tests/planning/test_search.py::test_a_metric_that_says_nothing_of_one_class_is_refused_in_time",),
    ),
    Mutation(
        "only three rows of one computation are named",
        "bench/tables/comparison.py",
        "            if len(rows) > 1:",
        "            if len(rows) > 2:",
        ("tests/tables/test_comparison.py::test_rows_that_are_the_same_computation_are_named",),
    ),
    Mutation(
        "a plugin's backbone of any type is registered",
        "bench/planning/registry.py",
        "if not issubclass(architecture, ARCHITECTURES):",
        "if False:",
        ("tests/planning/test_plugins.py::test_a_backbone_of_a_type_that_nothing_can_read_is_refused_by_the_plan",),
    ),
    Mutation(
        "SAM's second pass moves what the objective keeps once more",
        "bench/training/loop.py",
        "            self._give_objective(before)\n",
        "",
        ("tests/baselines/test_sam.py::test_what_an_objective_keeps_moves_once_in_a_step",),
    ),
    Mutation(
        "files are joined in which a cell has two keys",
        "bench/tables/rebuild.py",
        "if key != first_key:",
        "if False:",
        ("tests/tables/test_rebuild.py::test_a_cell_with_two_keys_is_refused_with_both_files",),
    ),
    Mutation(
        "a duration that is none counts",
        "bench/tables/records.py",
        "if seconds is not None and not 0 <= seconds < math.inf:",
        "if False:",
        ("tests/tables/test_rebuild.py::test_a_duration_that_is_none_is_refused_by_line",),
    ),
    Mutation(
        "the report has no figures",
        "bench/report/content.py",
        "list(_figures(content))",
        "[]",
        ("tests/report/test_content.py::test_every_figure_that_the_records_have_is_drawn_with_its_caption",),
    ),
)


def named_tests(mutations: Sequence[Mutation]) -> list[str]:
    """The ids of all tests that these name, each once."""
    return list(dict.fromkeys(test for mutation in mutations for test in mutation.tests))


def location_error(mutation: Mutation, root: Path = ROOT) -> str | None:
    """What is wrong with the place of a mutation, or None."""
    path = root / mutation.file
    count = path.read_text(encoding="utf-8").count(mutation.original) if path.is_file() else 0
    return None if count == 1 else f"the original text occurs {count} times in {mutation.file}"


def copy(folder: Path) -> Path:
    """A copy of the checkout, without what tests do not read."""
    left_out = shutil.ignore_patterns(".*", "__pycache__", "runs", "*.egg-info")

    def ignored(directory: str, names: list[str]) -> set[str]:
        at_top = {"data"} if Path(directory) == ROOT else set()  # prepared data, not tests/data or bench/data
        return set(left_out(directory, names)) | at_top

    shutil.copytree(ROOT, folder, ignore=ignored)
    return folder


def run(root: Path, tests: Sequence[str]) -> tuple[int, str]:
    """pytest's exit status and what it printed."""
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout + result.stderr


def verdict(mutation: Mutation, root: Path) -> str:
    """Apply one mutation to a copy, run its tests, take it back; `caught` or what is wrong."""
    error = location_error(mutation, root)
    if error is not None:
        return error
    path = root / mutation.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutation.original, mutation.wrong), encoding="utf-8")
    try:
        status, output = run(root, mutation.tests)
    finally:
        path.write_text(text, encoding="utf-8")
    if status == 1:  # pytest's own number for failed tests; anything else is a mistake of the list
        return "caught"
    return "NOT caught" if status == 0 else f"pytest ended with {status}: {output[-500:]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 if every mutation is caught, 1 if not, 2 for a name that is not in the list."""
    parser = argparse.ArgumentParser(prog="python tests/mutations.py", description=__doc__)
    parser.add_argument("--list", action="store_true", help="name the mutations and exit")
    parser.add_argument("--only", action="append", metavar="NAME", help="only these (may be given more than once)")
    parser.add_argument("--workers", type=int, default=1, help="how many at a time, each in a copy of its own")
    options = parser.parse_args(arguments)
    if options.list:
        for mutation in MUTATIONS:
            print(f"{mutation.name}: {mutation.file}; {', '.join(mutation.tests)}")
        return 0
    if unknown := set(options.only or ()) - {mutation.name for mutation in MUTATIONS}:
        parser.error(f"no mutation is named {', '.join(sorted(unknown))}; see --list")
    chosen = [mutation for mutation in MUTATIONS if not options.only or mutation.name in options.only]
    with tempfile.TemporaryDirectory(prefix="mutations-") as temporary:
        roots = [copy(Path(temporary) / str(number)) for number in range(max(1, options.workers))]
        print(f"without a mistake: {len(named_tests(chosen))} tests", flush=True)
        status, output = run(roots[0], named_tests(chosen))
        if status != 0:
            print(f"they fail as they are:\n{output}")
            return 1
        free = list(roots)

        def judge(mutation: Mutation) -> bool:
            began, root = time.monotonic(), free.pop()
            outcome = verdict(mutation, root)
            free.append(root)
            print(f"{outcome:10}  {time.monotonic() - began:5.1f} s  {mutation.name}", flush=True)
            return outcome == "caught"

        with ThreadPoolExecutor(len(roots)) as pool:
            caught = sum(pool.map(judge, chosen))
    print(f"{caught} of {len(chosen)} caught")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
