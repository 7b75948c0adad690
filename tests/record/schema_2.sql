BEGIN TRANSACTION;
CREATE TABLE curation (
	trajectory_uid VARCHAR NOT NULL, 
	step_index INTEGER NOT NULL, 
	trainable BOOLEAN, 
	quality VARCHAR NOT NULL, 
	note TEXT NOT NULL, 
	PRIMARY KEY (trajectory_uid, step_index)
);
INSERT INTO "curation" VALUES('ended',-1,NULL,'good','""');
CREATE TABLE feedback (
	id INTEGER NOT NULL, 
	trajectory_uid VARCHAR NOT NULL, 
	step_index INTEGER, 
	kind VARCHAR NOT NULL, 
	value FLOAT, 
	text TEXT NOT NULL, 
	"key" VARCHAR, 
	created_at FLOAT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (trajectory_uid, "key")
);
INSERT INTO "feedback" VALUES(1,'ended',NULL,'thumbs',1.0,'""','k',1.79579905810183858868e+09);
CREATE TABLE groups (
	prompt_uid VARCHAR NOT NULL, 
	channel VARCHAR NOT NULL, 
	size INTEGER, 
	deadline FLOAT, 
	state VARCHAR NOT NULL, 
	ended INTEGER NOT NULL, 
	ready_at FLOAT, 
	owner VARCHAR, 
	lease_until FLOAT, 
	train_step INTEGER, 
	PRIMARY KEY (prompt_uid, channel)
);
INSERT INTO "groups" VALUES('p1','train',1,NULL,'ready',1,1.79579905807170629502e+09,NULL,NULL,NULL);
INSERT INTO "groups" VALUES('p2','train',2,4000000000.0,'waiting',0,NULL,NULL,NULL,NULL);
CREATE TABLE schema_version (
	version INTEGER NOT NULL, 
	PRIMARY KEY (version)
);
INSERT INTO "schema_version" VALUES(2);
CREATE TABLE steps (
	trajectory_uid VARCHAR NOT NULL, 
	step_index INTEGER NOT NULL, 
	prompt_uid VARCHAR NOT NULL, 
	prompt_ids BLOB NOT NULL, 
	response_ids BLOB NOT NULL, 
	rollout_log_probs BLOB, 
	reward FLOAT, 
	policy_version INTEGER NOT NULL, 
	is_last BOOLEAN NOT NULL, 
	metadata TEXT NOT NULL, 
	role VARCHAR NOT NULL, 
	trainable BOOLEAN NOT NULL, 
	parent INTEGER, 
	branch_reason VARCHAR NOT NULL, 
	temperature FLOAT NOT NULL, 
	messages TEXT NOT NULL, 
	text TEXT NOT NULL, 
	finish_reason VARCHAR NOT NULL, 
	latency_s FLOAT NOT NULL, 
	tools TEXT DEFAULT '{"!tuple":[]}' NOT NULL, 
	PRIMARY KEY (trajectory_uid, step_index)
);
INSERT INTO "steps" VALUES('ended',0,'p1',X'010000000200000003000000',X'0400000005000000',X'000000000000E0BF59F3F8C21F6EA581',NULL,0,0,'{}','policy',1,NULL,'',1.0,'{"!tuple":[{"role":"user","content":"How many?"}]}','"three"','stop',0.0,'{"!tuple":[]}');
INSERT INTO "steps" VALUES('open',0,'p2',X'010000000200000003000000',X'0400000005000000',X'000000000000E0BF59F3F8C21F6EA581',NULL,0,0,'{}','policy',1,NULL,'',1.0,'{"!tuple":[{"role":"user","content":"How many?"}]}','"three"','stop',0.0,'{"!tuple":[]}');
CREATE TABLE tags (
	trajectory_uid VARCHAR NOT NULL, 
	step_index INTEGER NOT NULL, 
	tag VARCHAR NOT NULL, 
	PRIMARY KEY (trajectory_uid, step_index, tag)
);
INSERT INTO "tags" VALUES('ended',-1,'seen');
CREATE TABLE trajectories (
	id INTEGER NOT NULL, 
	uid VARCHAR NOT NULL, 
	prompt_uid VARCHAR NOT NULL, 
	channel VARCHAR NOT NULL, 
	train_step INTEGER, 
	status VARCHAR NOT NULL, 
	created_at FLOAT NOT NULL, 
	ended_at FLOAT, 
	task TEXT NOT NULL, 
	tool_calls TEXT NOT NULL, 
	answer TEXT NOT NULL, 
	turns INTEGER NOT NULL, 
	error TEXT NOT NULL, 
	rewards TEXT NOT NULL, 
	reward FLOAT, 
	metadata TEXT NOT NULL, 
	session TEXT, 
	PRIMARY KEY (id), 
	UNIQUE (uid)
);
INSERT INTO "trajectories" VALUES(1,'ended','p1','train',NULL,'completed',1.79579905798112416269e+09,1.79579905806861257547e+09,'{"id":"t1","prompt":"How many?","answer":3,"kind":"default","split":"train","metadata":{}}','[]','"3"',1,'""','{"given":1.0}',1.0,'{}','{"metadata":{},"group_size":1,"key":null}');
INSERT INTO "trajectories" VALUES(2,'open','p2','train',NULL,'running',1.79579905808671879763e+09,NULL,'{"id":"t1","prompt":"How many?","answer":3,"kind":"default","split":"train","metadata":{}}','[]','null',0,'""','{}',NULL,'{}','{"metadata":{"m":1},"group_size":2,"key":null}');
CREATE INDEX curation_by_quality ON curation (quality);
CREATE INDEX groups_by_owner ON groups (owner, state);
CREATE INDEX groups_by_state ON groups (channel, state, ready_at, deadline, ended, lease_until);
CREATE INDEX steps_by_prompt ON steps (prompt_uid);
CREATE INDEX tags_by_tag ON tags (tag);
CREATE INDEX trajectories_by_step ON trajectories (train_step);
CREATE INDEX trajectories_by_group ON trajectories (prompt_uid, channel, status);
CREATE INDEX trajectories_by_channel ON trajectories (channel, train_step);
CREATE INDEX trajectories_by_status ON trajectories (status, ended_at);
COMMIT;
