"""Trials of a sweep in TensorBoard's table of hyperparameters."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import metadata

from anatomask.sweeps.hparams import HPARAMS, record_trial

POINT = {"method.mask_ratio": 0.6, "method.decoder": "simple", "method.patch": 8, "loader.mirror": False, "x": None}


def test_each_trial_is_a_session_with_its_fields_and_the_scores_of_its_last_try(tmp_path: Path) -> None:
    record_trial(tmp_path, "000-a", POINT, {"dsc": 0.1, "dsc/one": 0.1})
    record_trial(tmp_path, "000-a", POINT, {"dsc": 0.25, "dsc/one": 0.5, "nsd/one": 0.75})
    record_trial(tmp_path, "001-b", POINT | {"method.patch": 16}, {"dsc": 0.5, "dsc/one": 0.5, "nsd/one": 0.5})
    events = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / HPARAMS))
    events.Reload()
    assert set(events.Runs()) == {"000-a", "001-b"}
    for trial, patch, dsc in (("000-a", 8, 0.25), ("001-b", 16, 0.5)):
        found = events.PluginRunToTagToContent(metadata.PLUGIN_NAME)[trial]
        session = metadata.parse_session_start_info_plugin_data(found[metadata.SESSION_START_INFO_TAG])
        values = {name: getattr(value, value.WhichOneof("kind")) for name, value in session.hparams.items()}
        assert values == POINT | {"method.patch": patch, "x": "None"}
        experiment = metadata.parse_experiment_plugin_data(found[metadata.EXPERIMENT_TAG])
        assert {info.name for info in experiment.hparam_infos} == set(POINT)
        assert {info.name.tag for info in experiment.metric_infos} == {"dsc", "dsc/one", "nsd/one"}
        assert metadata.SESSION_END_INFO_TAG in found
        assert [event.value for event in events.Scalars(trial, "dsc")] == [dsc]
