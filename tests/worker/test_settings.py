from __future__ import annotations

from pathlib import Path

import pytest

from worker.settings import Settings, SettingsError


def test_the_default_home_is_absolute_and_below_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.load()
    assert settings.home == tmp_path / ".kedge"
    assert settings.embedded
    assert settings.policy_dir == tmp_path / ".kedge" / "policies"


def test_the_nearest_source_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kedge.toml").write_text(
        'task_queue = "file"\nlog_level = "error"\ntemporal_address = "file:1"\n'
        'temporal_namespace = "file"\n'
    )
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path))
    assert Settings.load().task_queue == "file"
    monkeypatch.setenv("TEMPORAL_ADDRESS", "standard:2")
    assert Settings.load().temporal_address == "standard:2"
    monkeypatch.setenv("KEDGE_TEMPORAL_ADDRESS", "kedge:3")
    monkeypatch.setenv("KEDGE_TASK_QUEUE", "variable")
    settings = Settings.load()
    assert (settings.temporal_address, settings.task_queue) == ("kedge:3", "variable")
    assert settings.temporal_namespace == "file"
    assert Settings.load(task_queue="argument").task_queue == "argument"
    assert settings.log_level == "error"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TEMPORAL_ADDRESS", "cluster:7233"),
        ("TEMPORAL_PROFILE", "prod"),
        ("TEMPORAL_CONFIG_FILE", "/etc/temporal.toml"),
    ],
)
def test_naming_another_server_in_any_standard_way_leaves_the_embedded_one(
    variable: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Settings.load(tmp_path).embedded
    monkeypatch.setenv(variable, value)
    assert not Settings.load(tmp_path).embedded


def test_every_mistake_is_told_at_once_without_the_value_and_with_what_would_be_right(
    tmp_path: Path,
) -> None:
    (tmp_path / "kedge.toml").write_text(
        'engine_port = 99999\ntemporal_address = "hunter2"\ntask_que = "x"\n'
    )
    with pytest.raises(SettingsError) as caught:
        Settings.load(tmp_path)
    message = str(caught.value)
    assert len(message.splitlines()) == 3
    assert "setting engine_port: " in message
    assert "setting temporal_address: should be host:port" in message
    assert "setting task_que: there is no such setting; there are: " in message
    assert "task_queue, temporal_address" in message
    assert "hunter2" not in message


def test_a_file_that_is_not_toml_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "kedge.toml").write_text("= what")
    with pytest.raises(SettingsError, match=r"kedge\.toml is not TOML"):
        Settings.load(tmp_path)


def test_a_child_sees_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Settings.load(tmp_path, task_queue="zone-b", engine_ui=False, engine_port=12345)
    for name, value in ours.child_environment().items():
        monkeypatch.setenv(name, value)
    assert Settings.load() == ours
