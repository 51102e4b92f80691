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
    ours = Settings.load(tmp_path, task_queue="zone-b", engine_port=12345)
    for name, value in ours.child_environment().items():
        monkeypatch.setenv(name, value)
    assert Settings.load() == ours


@pytest.mark.parametrize(
    ("variable", "address"),
    [
        ("KEDGE_EVIDENCE_URL", "postgresql://kedge:hunter2@db/kedge"),
        ("KEDGE_EVIDENCE_URL", "postgresql://kedge:hun/ter2@db/kedge"),
        ("KEDGE_EVIDENCE_URL", "postgresql://kedge:hun?hunter2@db/kedge"),
        ("KEDGE_EVIDENCE_URL", "postgresql://kedge:hun#hunter2@db/kedge"),
        ("KEDGE_EVIDENCE_URL", "postgresql://kedge:hun@hunter2@db/kedge"),
        ("KEDGE_EVIDENCE_URL", "postgresql://kedge%3Ahunter2@db/kedge"),
        ("KEDGE_EVIDENCE_URL", "postgresql://kedge:hunter2/kedge"),
        ("KEDGE_EVIDENCE_URL", "postgresql://kedge@db/kedge?%70assword=hunter2"),
        ("KEDGE_EVIDENCE_URL", "postgresql://kedge@db/kedge?oauth_client_secret=hunter2"),
        ("KEDGE_EVIDENCE_URL", "postgresql://kedge@db/kedge?scram_client_key=hunter2"),
        ("KEDGE_RELEASE_REPOSITORY", "http://kedge:hunter2@releases/x"),
        ("KEDGE_RELEASE_REPOSITORY", "http://kedge:hun/ter2@releases/x"),
        ("KEDGE_RELEASE_REPOSITORY", "http://kedge:hun#hunter2@releases/x"),
        ("KEDGE_RELEASE_REPOSITORY", "https://releases/x?token=hunter2"),
        ("KEDGE_RELEASE_REPOSITORY", "https://releases:hunter2/x"),
        ("KEDGE_TEMPORAL_ADDRESS", "kedge:hunter2@temporal:7233"),
    ],
)
def test_an_address_with_a_password_anywhere_is_refused_without_repeating_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, address: str
) -> None:
    monkeypatch.setenv(variable, address)
    with pytest.raises(SettingsError) as raised:
        Settings.load(home=tmp_path)
    assert variable in str(raised.value)
    assert "ter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("evidence_url", "postgresql://kedge@db.internal:5432/kedge?sslmode=verify-full&passfile=/p"),
        ("evidence_url", "postgresql://kedge%40server@h1:1,h2:2/kedge"),
        ("evidence_url", "postgres://[::1]:5432/kedge"),
        ("evidence_url", "postgresql:///kedge?host=/var/run/postgresql&user=kedge"),
        ("evidence_url", "postgresql://?service=kedge"),
        ("release_repository", "https://releases.internal:8443/a/b"),
        ("release_repository", "http://[::1]:80/"),
    ],
)  # fmt: skip
def test_an_address_without_a_password_is_taken_as_it_is(
    tmp_path: Path, name: str, address: str
) -> None:
    assert getattr(Settings.load(home=tmp_path, **{name: address}), name) == address


def test_a_list_that_is_none_is_a_sentence_without_the_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEDGE_RELEASE_DIRS", "hunter2")
    with pytest.raises(SettingsError, match=r"release_dirs.*JSON") as raised:
        Settings.load(home=tmp_path)
    assert "hunter2" not in str(raised.value)
