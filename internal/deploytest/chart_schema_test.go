//go:build deploy

package deploytest

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"lifeboat/internal/config"
)

// schema is a JSON schema.
type schema = map[string]any

// configSchema describes config.yaml, from the type that decodes it.
func configSchema(of reflect.Type) schema {
	switch {
	case of == reflect.TypeFor[config.Duration]():
		return schema{"type": "string"}
	case of.Kind() == reflect.Slice:
		return schema{"type": []any{"array", "null"}, "items": configSchema(of.Elem())}
	case of.Kind() == reflect.Struct:
		properties := schema{}
		for i := range of.NumField() {
			field := of.Field(i)
			s := configSchema(field.Type)
			s["description"] = field.Tag.Get("doc")
			properties[field.Tag.Get("yaml")] = s
		}
		return schema{"type": "object", "additionalProperties": false, "properties": properties}
	}
	switch of.Kind() {
	case reflect.Bool:
		return schema{"type": "boolean"}
	case reflect.Int, reflect.Int64:
		return schema{"type": "integer"}
	}
	return schema{"type": "string"}
}

// exact are the values whose type their default does not tell.
func exact() map[string]schema {
	text := func(of ...any) schema { return schema{"type": "string", "enum": of} }
	anything := schema{"type": "object"}
	c := configSchema(reflect.TypeFor[config.Config]())
	// Written as YAML's own true or false as often as in quotes.
	store := c["properties"].(schema)["stores"].(schema)["items"].(schema)["properties"].(schema)
	store["s3"].(schema)["properties"].(schema)["pathStyle"].(schema)["type"] = []any{"string", "boolean"}
	path := func(properties schema) schema {
		return schema{"type": "array", "minItems": 1, "items": schema{
			"type": "object", "required": []any{"path"}, "additionalProperties": false, "properties": properties,
		}}
	}
	return map[string]schema{
		"config":                 c,
		"image.pullPolicy":       text("Always", "IfNotPresent", "Never"),
		"image.digest":           {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
		"dnsPolicy":              text("Default", "ClusterFirst", "ClusterFirstWithHostNet"),
		"host.mount":             text("paths", "root"),
		"host.recursiveReadOnly": text("IfPossible", "Enabled", "Disabled"),
		"host.paths": path(schema{
			"path":        schema{"type": "string", "pattern": "^/."},
			"type":        text("Directory", "DirectoryOrCreate"),
			"propagation": text("None", "HostToContainer"),
			"hide":        schema{"type": "array", "items": schema{"type": "string", "pattern": "^[^/]"}},
		}),
		"stateDir.hostPath":               schema{"type": "string", "pattern": "^/."},
		"goMemLimit":                      schema{"type": "string", "pattern": "^[0-9]+(B|KiB|MiB|GiB)$"},
		"metrics.tlsConfig":               anything,
		"updateStrategy":                  anything,
		"affinity":                        anything,
		"resources":                       anything,
		"prune.resources":                 anything,
		"probes.liveness":                 anything,
		"probes.readiness":                anything,
		"securityContext.seccompProfile":  anything,
		"securityContext.addCapabilities": schema{"type": "array", "items": text("DAC_READ_SEARCH")},
		"existingConfig":                  schema{"type": "object", "additionalProperties": false, "properties": schema{"configMap": schema{"type": "string"}, "secret": schema{"type": "string"}}, "anyOf": []any{schema{"properties": schema{"configMap": schema{"const": ""}}}, schema{"properties": schema{"secret": schema{"const": ""}}}}},
		"terminationGracePeriodSeconds":   schema{"type": "integer", "minimum": 1},
		"webIdentity.expirationSeconds":   schema{"type": "integer", "minimum": 600},
		"prune.activeDeadlineSeconds":     schema{"type": "integer", "minimum": 60},
		"signing.existingSecret":          schema{"type": "string", "minLength": 1},
		"prune.signingSecret":             schema{"type": "string", "minLength": 1},
	}
}

// valuesSchema describes values by their defaults: a map with keys has these
// and no others, an empty one any.
func valuesSchema(value any, path string, exact map[string]schema) schema {
	if s, ok := exact[path]; ok {
		return s
	}
	switch v := value.(type) {
	case map[string]any:
		if len(v) == 0 {
			return schema{"type": "object"}
		}
		properties := schema{}
		for key, child := range v {
			at := key
			if path != "" {
				at = path + "." + key
			}
			properties[key] = valuesSchema(child, at, exact)
		}
		return schema{"type": "object", "additionalProperties": false, "properties": properties}
	case []any:
		return schema{"type": "array"}
	case bool:
		return schema{"type": "boolean"}
	case float64:
		return schema{"type": "integer"}
	}
	return schema{"type": "string"}
}

func TestTheSchemaIsThatOfTheValuesAndOfTheConfiguration(t *testing.T) {
	text, err := os.ReadFile(deploy("helm", "lifeboat", "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.UnmarshalStrict(text, &values); err != nil {
		t.Fatal(err)
	}
	s := valuesSchema(values, "", exact())
	s["$schema"] = "http://json-schema.org/draft-07/schema#"
	s["properties"].(schema)["global"] = schema{"type": "object"} // Helm's own
	var want bytes.Buffer
	encoder := json.NewEncoder(&want)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(s); err != nil {
		t.Fatal(err)
	}
	compare(t, deploy("helm", "lifeboat", "values.schema.json"), want.String())
}

// compare checks a generated file, or writes it when asked to.
func compare(t *testing.T, file, want string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("%s is out of date, run go test -tags deploy ./internal/deploytest -update (-generated +file):\n%s", file, diff)
	}
}

// everything is a configuration in which no value is a default.
func everything() *config.Config {
	c := &config.Config{
		Cluster: "prod-eu1", Node: "cp9", Discover: true,
		Etcd: []config.Etcd{{
			Name: "events", Endpoints: []string{"https://10.0.0.31:2379", "https://10.0.0.32:2379"},
			CAFile: "/host/etc/etcd/ca.crt", CertFile: "/host/etc/etcd/client.crt", KeyFile: "/host/etc/etcd/client.key",
		}},
		Host: config.Host{Root: "/host", ExtraPaths: []string{"/etc/motd"}},
		Stores: []config.Store{
			{URL: "s3://my-bucket/lifeboat", S3: config.S3{
				Endpoint: "https://minio.example:9000", Region: "eu-central-1", Profile: "backup", PathStyle: "true", CAFile: "/etc/lifeboat/minio.crt",
				Checksums: "on", SSE: "aws:kms", KMSKeyID: "alias/backup", StorageClass: "STANDARD_IA", ObjectLock: config.ObjectLock{Mode: "governance", Days: 30},
			}},
			config.DefaultStore("file:///var/lib/lifeboat/store"),
		},
		MinStores: 2, Recipients: []string{recipient},
		Signing:   config.Signing{KeyFile: "other.key", TrustFile: "other-trust"},
		Schedule:  config.Schedule{Full: "@every 1h", Files: "@every 2h", Verify: "@daily", Prune: "@weekly", Drill: "@monthly", Jitter: 7},
		Segments:  config.Segments{Interval: config.Duration(9 * time.Second), MaxBytes: 1<<33 + 1, SpoolBytes: 1<<40 + 1},
		Proof:     config.Proof{MaxStall: config.Duration(90 * time.Millisecond)},
		Retention: config.Retention{Hourly: 1, Daily: 2, Weekly: 3, Monthly: 4, Minimum: 5, PointInTime: config.Duration(time.Hour)},
		StateDir:  "/var/lib/lifeboat",
		HTTP:      config.HTTP{Listen: "127.0.0.1:7000", CertFile: "tls.crt", KeyFile: "tls.key", TokenFile: "token"},
		DeadMan:   config.DeadMan{URLFile: "url", Interval: config.Duration(time.Minute)},
	}
	return c
}

const recipient = "age1u2ed20ecyst3wfmku9933n9ka789yf5gnsxmde0vc8057zqzd37s30xp4u"

func TestNoValueOfEverythingIsADefault(t *testing.T) {
	want := config.Default()
	want.StateDir = "" // the pods' own, as is the root
	same(t, "", reflect.ValueOf(*everything()), reflect.ValueOf(*want))
}

// same fails for every scalar that both have.
func same(t *testing.T, path string, a, b reflect.Value) {
	t.Helper()
	for i := range a.NumField() {
		at := path + a.Type().Field(i).Tag.Get("yaml")
		switch x, y := a.Field(i), b.Field(i); {
		case x.Kind() == reflect.Struct:
			same(t, at+".", x, y)
		case x.IsZero() || reflect.DeepEqual(x.Interface(), y.Interface()):
			t.Errorf("%s is %v in both", at, x.Interface())
		}
	}
}
