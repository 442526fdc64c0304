// SPARC's fine-grained loss (eq. 6) and its gradient in C++17, nothing but the standard library.
//     g++ -O2 -std=c++17 sparc_loss.cpp -o sparc_loss
//     sparc-ref check --export DIR && ./sparc_loss DIR && sparc-ref check DIR
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

struct Tensor {
    std::vector<size_t> shape;
    std::vector<double> data;
};

// A safetensors file: 8 bytes n, n bytes of JSON, data.  Reads the names that we write and read here, no JSON in general.
static std::map<std::string, Tensor> read(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    std::string all((std::istreambuf_iterator<char>(file)), {});
    uint64_t n = 0;
    std::memcpy(&n, all.data(), 8);
    const std::string header = all.substr(8, n);
    std::map<std::string, Tensor> found;
    for (const std::string name : {"v", "t", "mask", "theta"}) {
        const size_t at = header.find("\"" + name + "\":{");
        const std::string entry = header.substr(at, header.find('}', at) - at);
        const bool bytes = entry.find("\"U8\"") != std::string::npos;
        Tensor x;
        size_t count = 1;
        const char* p = entry.c_str() + entry.find("\"shape\":[") + 9;
        for (char* end; *p != ']'; p = *end == ',' ? end + 1 : end) x.shape.push_back(std::strtoull(p, &end, 10)), count *= x.shape.back();
        const size_t start = std::strtoull(entry.c_str() + entry.find("\"data_offsets\":[") + 16, nullptr, 10);
        const char* raw = all.data() + 8 + n + start;
        x.data.resize(count);
        for (size_t i = 0; i < count; ++i) {
            if (bytes) x.data[i] = raw[i];
            else std::memcpy(&x.data[i], raw + 8 * i, 8);
        }
        found[name] = x;
    }
    return found;
}

static void write(const std::filesystem::path& path, const std::map<std::string, Tensor>& tensors) {
    std::string header = "{", data;
    for (const auto& [name, x] : tensors) {
        std::string shape;
        for (size_t n : x.shape) shape += (shape.empty() ? "" : ",") + std::to_string(n);
        const size_t start = data.size();
        data.append(reinterpret_cast<const char*>(x.data.data()), 8 * x.data.size());
        header += (header.size() > 1 ? ",\"" : "\"") + name + "\":{\"dtype\":\"F64\",\"shape\":[" + shape + "],\"data_offsets\":[" +
                  std::to_string(start) + "," + std::to_string(data.size()) + "]}";
    }
    header += "}";
    const uint64_t n = header.size();
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&n), 8);
    file << header << data;
}

using Matrix = std::vector<std::vector<double>>;
static Matrix zeros(size_t rows, size_t columns) { return Matrix(rows, std::vector<double>(columns, 0.0)); }
static double dot(const std::vector<double>& a, const std::vector<double>& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
}

// One caption without its padding.  v (P,D), t (L,D); adds to dv, dt, dtheta with weight w; returns the loss.
static double one(const Matrix& v, const Matrix& t, double theta, double w, Matrix& dv, Matrix& dt, double& dtheta) {
    const size_t P = v.size(), L = t.size(), D = v[0].size();
    const double scale = std::exp(theta);
    Matrix s = zeros(L, P), h = zeros(L, P), a = zeros(L, P), c = zeros(L, D), u = t;
    std::vector<double> lo(L), hi(L), total(L, 0.0), c_norm(L), u_norm(L);
    for (size_t l = 0; l < L; ++l) {
        for (size_t p = 0; p < P; ++p) s[l][p] = dot(t[l], v[p]);
        lo[l] = hi[l] = s[l][0];
        for (double x : s[l]) lo[l] = std::min(lo[l], x), hi[l] = std::max(hi[l], x);
        for (size_t p = 0; p < P; ++p) {
            h[l][p] = hi[l] == lo[l] ? 1.0 : (s[l][p] - lo[l]) / (hi[l] - lo[l]);          // eq. 2
            if (h[l][p] >= 1.0 / P) total[l] += a[l][p] = h[l][p];                         // eq. 3
        }
        for (size_t p = 0; p < P; ++p) {
            a[l][p] /= total[l];                                                           // eq. 4
            for (size_t d = 0; d < D; ++d) c[l][d] += a[l][p] * v[p][d];                   // eq. 5
        }
        c_norm[l] = std::sqrt(dot(c[l], c[l])), u_norm[l] = std::sqrt(dot(u[l], u[l]));
        for (size_t d = 0; d < D; ++d) c[l][d] /= c_norm[l], u[l][d] /= u_norm[l];
    }
    Matrix z = zeros(L, L), dz = zeros(L, L);
    for (size_t j = 0; j < L; ++j)
        for (size_t k = 0; k < L; ++k) z[j][k] = scale * dot(c[j], u[k]);
    double loss = 0;
    for (size_t j = 0; j < L; ++j) {
        double rows = 0, columns = 0;
        for (size_t k = 0; k < L; ++k) rows += std::exp(z[j][k] - z[j][j]), columns += std::exp(z[k][j] - z[j][j]);
        loss += (std::log(rows) + std::log(columns)) / (2.0 * L);
        for (size_t k = 0; k < L; ++k) {
            dz[j][k] += w * (std::exp(z[j][k] - z[j][j]) / rows - (j == k)) / (2.0 * L);
            dz[k][j] += w * (std::exp(z[k][j] - z[j][j]) / columns - (j == k)) / (2.0 * L);
        }
    }
    for (size_t l = 0; l < L; ++l) {
        std::vector<double> dc(D, 0.0), du(D, 0.0), da(P), ds(P);
        for (size_t k = 0; k < L; ++k) {
            dtheta += dz[l][k] * z[l][k];
            for (size_t d = 0; d < D; ++d) dc[d] += scale * dz[l][k] * u[k][d], du[d] += scale * dz[k][l] * c[k][d];
        }
        const double along_c = dot(dc, c[l]), along_u = dot(du, u[l]);
        for (size_t d = 0; d < D; ++d) {
            dc[d] = (dc[d] - along_c * c[l][d]) / c_norm[l];
            dt[l][d] += (du[d] - along_u * u[l][d]) / u_norm[l];
        }
        for (size_t p = 0; p < P; ++p) da[p] = dot(dc, v[p]);
        const double mean = dot(da, a[l]);
        double dlo = 0, dhi = 0, ties_lo = 0, ties_hi = 0;
        for (size_t p = 0; p < P; ++p) {
            const bool kept = h[l][p] >= 1.0 / P && hi[l] != lo[l];
            ds[p] = kept ? (da[p] - mean) / total[l] / (hi[l] - lo[l]) : 0.0;
            dlo += ds[p] * (h[l][p] - 1), dhi -= ds[p] * h[l][p];
            ties_lo += s[l][p] == lo[l], ties_hi += s[l][p] == hi[l];
        }
        for (size_t p = 0; p < P; ++p) {
            if (s[l][p] == lo[l]) ds[p] += dlo / ties_lo;
            if (s[l][p] == hi[l]) ds[p] += dhi / ties_hi;
            for (size_t d = 0; d < D; ++d) {
                dt[l][d] += ds[p] * v[p][d];
                dv[p][d] += ds[p] * t[l][d] + a[l][p] * dc[d];
            }
        }
    }
    return loss;
}

int main(int argc, char** argv) {
    if (argc != 2) return std::fprintf(stderr, "usage: sparc_loss DIR\n"), 2;
    std::vector<std::filesystem::path> inputs;
    for (const auto& entry : std::filesystem::directory_iterator(argv[1]))
        if (entry.path().filename().string().rfind("in.", 0) == 0) inputs.push_back(entry.path());
    for (const auto& path : inputs) {
        auto in = read(path);
        const Tensor &v = in["v"], &t = in["t"], &mask = in["mask"];
        const size_t B = v.shape[0], P = v.shape[1], D = v.shape[2], L = t.shape[1];
        Tensor dv{v.shape, std::vector<double>(v.data.size(), 0.0)}, dt{t.shape, std::vector<double>(t.data.size(), 0.0)};
        double loss = 0, dtheta = 0;
        for (size_t b = 0; b < B; ++b) {
            Matrix patches = zeros(P, D), tokens, dpatches = zeros(P, D);
            std::vector<size_t> real;
            for (size_t p = 0; p < P; ++p) patches[p].assign(&v.data[(b * P + p) * D], &v.data[(b * P + p) * D] + D);
            for (size_t l = 0; l < L; ++l)
                if (mask.data[b * L + l] != 0) {
                    real.push_back(l);
                    tokens.emplace_back(&t.data[(b * L + l) * D], &t.data[(b * L + l) * D] + D);
                }
            if (real.empty()) continue;
            Matrix dtokens = zeros(real.size(), D);
            loss += one(patches, tokens, in["theta"].data[0], 1.0 / B, dpatches, dtokens, dtheta) / B;
            for (size_t p = 0; p < P; ++p) std::memcpy(&dv.data[(b * P + p) * D], dpatches[p].data(), 8 * D);
            for (size_t i = 0; i < real.size(); ++i) std::memcpy(&dt.data[(b * L + real[i]) * D], dtokens[i].data(), 8 * D);
        }
        const std::string name = path.filename().string().substr(3);
        write(path.parent_path() / ("out." + name), {{"fine", {{}, {loss}}}});
        write(path.parent_path() / ("grad." + name), {{"v", dv}, {"t", dt}, {"theta", {{}, {dtheta}}}});
    }
    return 0;
}
